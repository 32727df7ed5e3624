"""Shows how a run goes: a live table on a terminal, one line a change of state elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stagecoach_workflows.engine import State, TaskRun

_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "cyan",
    State.RETRYING: "yellow",
    State.DONE: "green",
    State.SKIPPED: "dim",
    State.FAILED: "bold red",
    State.OMITTED: "dim",
}
_REDRAW_SECONDS = 0.2
_LINE_SECONDS = 10.0


class Display:
    """Draws the tasks of a run; a context manager, called with all tasks at each tick."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console``: a live table if it is a terminal, plain lines if not."""
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._shown: dict[str, State] = {}
        self._next_redraw_seconds = 0.0
        self._next_line_seconds = time.monotonic() + _LINE_SECONDS

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, runs: Mapping[str, TaskRun]) -> None:
        """Show the tasks as they are now."""
        now_seconds = time.monotonic()
        if self._live is not None:
            states = {name: run.state for name, run in runs.items()}
            if now_seconds >= self._next_redraw_seconds or states != self._shown:
                self._next_redraw_seconds = now_seconds + _REDRAW_SECONDS
                self._shown = states
                self._live.update(_table(runs), refresh=True)
            return
        for name, run in runs.items():
            if self._shown.get(name, State.WAITING) is not run.state:
                self._shown[name] = run.state
                self._line(run)
        if now_seconds >= self._next_line_seconds:
            self._next_line_seconds = now_seconds + _LINE_SECONDS
            for run in runs.values():
                if run.state is State.RUNNING:
                    self._line(run)

    def _line(self, run: TaskRun) -> None:
        share, note = run.progress()
        parts = [f"{run.spec.name}: {run.state}"]
        if run.state is State.RUNNING and share:
            parts.append(f"{share:.0%}")
        if run.state in (State.DONE, State.FAILED):
            parts.append(f"in {run.seconds():.1f} s")
        if run.exit_code:
            parts.append(f"(exit code {run.exit_code})")
        if run.state is State.RUNNING and note:
            parts.append(note)
        self._console.print(" ".join(parts))


def _table(runs: Mapping[str, TaskRun]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for run in runs.values():
        share, note = run.progress()
        style = _STYLES[run.state]
        bar = ProgressBar(total=1.0, completed=share, width=24) if run.state is State.RUNNING else Text("")
        seconds = f"{run.seconds():.1f} s" if run.started_seconds is not None else ""
        if run.state in (State.DONE, State.SKIPPED):
            note = ""
        elif run.state in (State.FAILED, State.RETRYING):
            note = f"exit code {run.exit_code}: {run.last_sentence().partition(chr(10))[0]}"
        table.add_row(Text(run.spec.name), Text(str(run.state), style=style), bar, Text(seconds), Text(note))
    return table
