"""The download stage: weights, tokenizer or chat data come in, and nothing later looks at where they came from.

download-model       config.json and weights          as they are in the source
download-tokenizer   the tokenizer, made final        pack, convert, export and serving all use this one
download-data        chat files                       as they are in the source
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagecoach.outputs import Input, Output
from stagecoach.recipe.base import Section
from stagecoach.recipe.download import (
    DownloadDataConfig,
    DownloadModelConfig,
    DownloadTokenizerConfig,
    ResolvedFile,
    SeedIdentity,
)
from stagecoach.recipe.source import ExportSource, HubSource
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach_download import seed_model
from stagecoach_download.fetch import copy_file, fetch_files
from stagecoach_download.sources import DownloadConfig, open_reader


def run(config: Section, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    """Bring what the config names into ``output``; its type says which of the three tasks this is.

    Raises:
        UnavailableError: The source does not answer, however often it was asked.
        CorruptObjectError: A file differs from what was planned.
        MissingInputError: A file is gone.
        ConfigError: Access is denied.
    """
    match config:
        case DownloadModelConfig(seed=SeedIdentity() as seed):
            _make_model(seed, output)
        case DownloadModelConfig():
            _fetch((*config.files, *config.documents), config, output)
        case DownloadTokenizerConfig():
            _make_tokenizer(config, output)
        case DownloadDataConfig():
            _fetch(config.files, config, output)
        case _:
            raise TypeError(f"the download stage has no task for a {type(config).__name__}")


def check(config: DownloadConfig, inputs: Mapping[str, Input]) -> None:
    """Say whether ``run`` could begin, without fetching anything; raises as ``run`` does."""
    seed = getattr(config, "seed", None)
    if seed is not None:
        seed_model.check_text(seed)
    elif not isinstance(config.source, ExportSource):  # that one was looked at when the run was planned
        open_reader(config, Settings.from_environ())


def _fetch(files: tuple[ResolvedFile, ...], config: DownloadConfig, output: Output) -> None:
    reader = open_reader(config, Settings.from_environ(), output.store)
    reused = fetch_files(files, reader, output)
    output.summary = {**_origin(config, reader.origin), "num_files": len(files), "num_files_taken_over": reused}


def _make_model(seed: SeedIdentity, output: Output) -> None:
    seed_model.check_text(seed)
    output.write_bytes("config.json", seed_model.config_json(seed.model))
    with output.create("model.safetensors") as stream:
        seed_model.write_weights(seed.model, stream)
    output.summary = {"origin": f"made from seed {seed.model.seed}", "num_files": 2}


def _make_tokenizer(config: DownloadTokenizerConfig, output: Output) -> None:
    from stagecoach.formats.tokenizer import build_final_tokenizer  # the library tokenizers is needed here only

    folder = output.scratch / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if config.seed is not None:
            seed_model.check_text(config.seed)
            (folder / "tokenizer.model").write_bytes(seed_model.tokenizer_model(config.seed.model))
            origin = f"trained on the embedded chat set, {config.seed.model.vocab_size} pieces"
        else:
            origin = _copy_to(folder, config, output.store)
        files = build_final_tokenizer(folder, config.chat_format)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, data in sorted(files.items()):
        output.write_bytes(name, data)
    output.summary = {**_origin(config, origin), "chat_format": config.chat_format, "num_files": len(files)}


def _copy_to(folder: Path, config: DownloadTokenizerConfig, store: ObjectStore) -> str:
    reader = open_reader(config, Settings.from_environ(), store)
    for file in config.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            copy_file(file, reader, stream)
    return reader.origin


def _origin(config: DownloadConfig, origin: str) -> dict[str, Any]:
    """Return what the manifest says about where the files came from."""
    if isinstance(config.source, HubSource):
        return {
            "origin": origin,
            "repo": config.source.repo,
            "revision": config.source.revision,
            "commit": config.commit,
        }
    return {"origin": origin}
