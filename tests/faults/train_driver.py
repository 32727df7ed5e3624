"""Runs the train stage on the tiny inputs in a process of its own, so that a test can kill it: STORE RUN CONFIG."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from stagecoach.contract import exit_code_of
from stagecoach.outputs import Output, open_input
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach_train.run import run

TRAINED = "trained/tiny-0123456789abcdef/"


def main(store_url: str, run_id: str, config: str) -> int:
    """Train and commit; the exit code is what the stage's would be."""
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    settings = Settings.from_environ()
    store = open_store(store_url, settings)
    inputs = {
        name: open_input(store, f"{name}/tiny-0123456789abcdef/", settings.scratch_dir) for name in ("shards", "packed")
    }
    output = Output(store, TRAINED, Path(settings.scratch_dir) / f"{run_id}-{os.getpid()}")
    output.run_id = run_id
    try:
        run(TrainConfig.model_validate(json.loads(config)), inputs, output, store)
        output.commit(task="train", key="0123456789abcdef", name="tiny", output_version=1)
    except BaseException as error:
        code, sentence = exit_code_of(error)
        sys.stderr.write(sentence + "\n")
        return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
