"""The program behind ``stagecoach preview`` and ``stagecoach data-stats``: shows on the terminal what pack would make.

    python -m stagecoach_pack.look preview --store URL [--rows N] [--ids]
    python -m stagecoach_pack.look statistics FILE .. --store URL

Standard input holds ``{"config": .., "inputs": ..}`` as the stage itself gets them. A program of its own, because the
command line may not import a stage.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from stagecoach import source_files
from stagecoach.contract import exit_code_of
from stagecoach.errors import MissingInputError
from stagecoach.outputs import open_input
from stagecoach.paths import new_try_prefix
from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach.terminal import console
from stagecoach_pack.preview import data_statistics, preview, preview_text, statistics_table
from stagecoach_pack.run import data_files, open_tokenizer
from stagecoach_pack.sources.readers import DataFile

_PLAIN_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code (see ``stagecoach.errors``)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    flags = _parser().parse_args(arguments)
    settings = Settings.from_environ()
    scratch = settings.scratch_dir / new_try_prefix("look-").rstrip("/")
    terminal = console(_PLAIN_WIDTH)
    try:
        request = json.loads(sys.stdin.read())
        store = open_store(flags.store, settings)
        inputs = {name: open_input(store, prefix, scratch) for name, prefix in request["inputs"].items()}
        tokenizer = open_tokenizer(inputs["tokenizer"])
        if flags.command == "statistics":
            terminal.print(statistics_table(list(data_statistics(chat_files(flags.files), tokenizer))))
            return 0
        config = PackTaskConfig.model_validate(request["config"])
        talks = preview(
            config.data, data_files(config, inputs), tokenizer, train_on=config.pack.train_on, rows=flags.rows
        )
        for shown in talks:
            terminal.print(preview_text(shown, tokenizer, with_ids=flags.ids), soft_wrap=True)
        return 0
    except BaseException as error:
        code, sentence = exit_code_of(error)
        sys.stderr.write(f"{sentence}\n")
        return code
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stagecoach_pack.look", description=__doc__)
    parser.add_argument("command", choices=("preview", "statistics"))
    parser.add_argument("--store", required=True, metavar="URL", help="where the tokenizer and the data are kept")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="preview: conversations of each source")
    parser.add_argument("--ids", action="store_true", help="preview: show each token and its id")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="statistics: chat files or folders")
    return parser


def chat_files(paths: Sequence[Path]) -> list[DataFile]:
    """Return the chat files that a user names, in the order given; folders are searched.

    Raises:
        MissingInputError: A path is not there, or a folder holds none.
    """
    found: list[DataFile] = []
    for path in paths:
        if not path.is_dir():
            if not path.is_file():
                raise MissingInputError(f"{path}: expected a chat file, or a folder with some, found nothing")
            found.append(DataFile(path.name, path))
            continue
        inside = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        found += [DataFile(f"{path.name}/{name}", path / name) for name in source_files.data_files(inside, str(path))]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
