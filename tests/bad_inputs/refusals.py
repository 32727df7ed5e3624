"""How bad input is refused, looked at from outside: exit code, one sentence a mistake, quickly, and nothing left behind."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecoach.contract import stage_main
from stagecoach_workflows.cli.main import app

MAX_CPU_SECONDS = 2.0
_HINT = "Try: stagecoach --help"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one command did."""

    exit_code: int
    sentences: list[str]
    """What standard error says: all lines of a command, the errors among a stage's log lines."""
    said: str
    """All that was written."""
    cpu_seconds: float
    left: list[str]
    """Files that were not there before."""

    def assert_refused(self, exit_code: int, *words: str) -> None:
        """One sentence with all of these words, the exit code, in less than two seconds, and nothing half-written."""
        assert self.exit_code == exit_code, self.said
        assert "Traceback" not in self.said
        assert len(self.sentences) == 1, self.sentences
        assert [word for word in words if word not in self.sentences[0]] == [], self.sentences[0]
        assert self.left == []
        assert self.cpu_seconds < MAX_CPU_SECONDS


def command(folder: Path, *arguments: str) -> Outcome:
    """Run ``stagecoach ARGUMENTS`` in this process."""
    return _outcome(folder, lambda: app(list(arguments)), _lines)


def stage(folder: Path, store: Path | str, name: str, values: Mapping[str, Any]) -> Outcome:
    """Run one task by hand in this process; ``values`` are its task, config, inputs and name."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(dict(values)), encoding="utf-8")
    return _outcome(folder, lambda: stage_main(name, ["--store", str(store), "--config", str(file)]), _errors)


def download(folder: Path, store: Path, task: str, files: Path, **config: Any) -> str:
    """Bring a folder's files into the store, as they are, and return the output's folder."""
    found = [
        {"path": path.relative_to(files).as_posix(), "size_bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(files.rglob("*"))
        if path.is_file()
    ]
    source = {"kind": "directory", "path": str(files)}
    done = stage(
        folder, store, "download", {"task": task, "name": "x", "config": {"source": source, "files": found, **config}}
    )
    assert done.exit_code == 0, done.said
    kind = {"download-model": "models", "download-tokenizer": "tokenizers", "download-data": "datasets"}[task]
    (made,) = (store / "sources" / kind).glob("*/manifest.json")
    return made.parent.relative_to(store).as_posix() + "/"


def _lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.strip() and line != _HINT]


def _errors(said: str) -> list[str]:
    """Return a stage's error; of several bad rows it has a line for each of the first ten."""
    return said.split(" E stagecoach: ")[1:]


def _outcome(folder: Path, run: Callable[[], int], sentences: Callable[[str], list[str]]) -> Outcome:
    before = _files(folder)
    said = io.StringIO()
    started = time.process_time()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = run()
    cpu_seconds = time.process_time() - started
    text = said.getvalue()
    return Outcome(
        exit_code=code,
        sentences=sentences(text),
        said=text,
        cpu_seconds=cpu_seconds,
        left=sorted(_files(folder) - before),
    )


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
