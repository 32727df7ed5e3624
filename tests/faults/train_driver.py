"""Runs the train stage on the tiny inputs in a process of its own, so that a test can kill it: STORE RUN CONFIG.

With ``TEST_PAUSE=PHASE:SECONDS:FILE`` it stands still that long in that phase, once, and makes the file when it does.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from stagecoach.contract import exit_code_of
from stagecoach.outputs import Output, open_input
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach_train.run import run

TRAINED = "trained/tiny-0123456789abcdef/"


PHASES: dict[str, tuple[str, str, str, int]] = {
    "start": ("stagecoach_train.run", "", "check_inputs", 1),
    "warm-up": ("stagecoach_train.engine", "Engine", "train_step", 1),
    "step": ("stagecoach_train.engine", "Engine", "train_step", 12),
    "evaluation": ("stagecoach_train.evaluation", "Evaluator", "run", 2),
    "checkpoint": ("stagecoach_train.checkpoint_writer", "CheckpointWriter", "save", 1),
    "upload": ("stagecoach_train.checkpoint_writer", "CheckpointWriter", "_write_own_file", 1),
    "commit": ("stagecoach_train.checkpoint_writer", "CheckpointWriter", "_commit", 1),
    "retention": ("stagecoach_train.checkpoint_writer", "CheckpointWriter", "_tidy_up", 2),
}
"""Phase -> module, class, function, and at which call of it the pause comes."""
LAST_PHASES: dict[str, tuple[str, str, str, int]] = {
    "last checkpoint": ("stagecoach_train.checkpoint_writer", "CheckpointWriter", "_commit", 5),
    "hand-over": ("stagecoach_train.run", "", "_hand_over", 1),
    "manifest": ("stagecoach.outputs", "Output", "commit", 1),
}
"""The same of what comes after the last step: nothing is left to train, and the output's manifest is not there yet."""


def place_of(phase: str) -> tuple[Any, str]:
    """Return the module or class that holds a phase's function, and the function's name."""
    module, owner, name, _ = (PHASES | LAST_PHASES)[phase]
    holder: Any = importlib.import_module(module)
    return (getattr(holder, owner) if owner else holder), name


def pause(phase: str, seconds: float, file: Path) -> None:
    """Let this process stand still in a phase; only a rank that runs in this very process meets it."""
    number = (PHASES | LAST_PHASES)[phase][3]
    holder, name = place_of(phase)
    inner, calls = getattr(holder, name), itertools.count(1)

    def paused(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            file.touch()
            time.sleep(seconds)
        return inner(*arguments, **named)

    setattr(holder, name, paused)


def main(store_url: str, run_id: str, config: str) -> int:
    """Train and commit; the exit code is what the stage's would be."""
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    if wish := os.environ.get("TEST_PAUSE"):
        phase, seconds, file = wish.split(":", 2)
        pause(phase, float(seconds), Path(file))
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
