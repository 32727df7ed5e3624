"""Stand-in stages: the real contract around a ``run`` of three lines, so that a whole run takes seconds.

They obey one more environment variable, ``STAND_IN``: ``pack:exit:79``, ``train:hang`` or ``train:exit-once:75``.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from stagecoach.settings import child_environ
from stagecoach.stages import STAGES
from stagecoach.storage.local import LocalStore

_MAIN = '''"""A stand-in stage."""
from stagecoach.contract import stage_main

raise SystemExit(stage_main("{stage}"))
'''

_RUN = '''"""A stand-in stage."""
import os
import pathlib
import signal
import time

from stagecoach.errors import DataError, InterruptedWithProgress


def run(config, inputs, output, store):
    for item in inputs.values():
        item.read_bytes("result.txt")
    stage, _, order = os.environ.get("STAND_IN", "").partition(":")
    if stage == "{stage}":
        obey(order)
    output.progress(1, 2, "half of it")
    output.write_bytes("result.txt", "{stage}".encode())
    output.summary["steps"] = 8


def finish(config, finished, store):
    pass


def obey(order):
    what, _, code = order.partition(":")
    seen = pathlib.Path(os.environ["STAND_IN_FOLDER"], "seen")
    again = seen.exists()
    seen.touch()
    if what == "exit" or (what == "exit-once" and not again):
        error = type("Planned", (DataError,), {{"exit_code": int(code)}})
        raise error("chat.jsonl: row 3: expected messages, got 7")
    if what == "hang":
        def stop(number, frame):
            raise InterruptedWithProgress("stopped at step 5; run again to go on")

        signal.signal(signal.SIGTERM, stop)
        pathlib.Path(os.environ["STAND_IN_FOLDER"], "hanging").write_text(str(os.getpid()))
        time.sleep(60)
'''


@dataclass(frozen=True, kw_only=True)
class StandIns:
    """A folder with stand-in packages, a store and a work folder."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> LocalStore:
        """The store that runs use."""
        return LocalStore(self.folder / "work/store")

    def command(self, *arguments: str, recipe: str = "micro") -> list[str]:
        """The command line of one run."""
        work = str(self.folder / "work")
        return [sys.executable, "-m", "stagecoach_workflows", "run", recipe, "--work", work, *arguments]

    def environment(self, stand_in: str = "") -> dict[str, str]:
        """The environment in which the stand-ins are found before the real stages."""
        return child_environ(
            PYTHONPATH=str(self.folder / "packages"),
            STAND_IN=stand_in,
            STAND_IN_FOLDER=str(self.folder),
            STAGECOACH_SCRATCH=str(self.folder / "scratch"),
        )

    def run(self, *arguments: str, stand_in: str = "") -> subprocess.CompletedProcess[str]:
        """Run a recipe to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(stand_in),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def done(self) -> list[str]:
        """Kinds of output that are complete."""
        keys = [info.key for info in self.store.list("")]
        return sorted({key.rsplit("/", 2)[0] for key in keys if key.endswith("/manifest.json")})


def make_stand_ins(folder: Path) -> StandIns:
    """Write the packages."""
    for stage in STAGES:
        package = folder / "packages" / f"stagecoach_{stage}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "__main__.py").write_text(_MAIN.format(stage=stage))
        (package / "run.py").write_text(_RUN.format(stage=stage))
    return StandIns(folder=folder)
