"""What ``submit``, ``run`` and ``status`` share: showing how a run on a cluster goes until it ends."""

from __future__ import annotations

import time
from typing import Protocol

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stagecoach.errors import UnavailableError
from stagecoach.terminal import console, visible
from stagecoach_workflows.workflow_state import NodeState, WorkflowState

_POLL_SECONDS = 2.0
_MAX_SILENCE_SECONDS = 300.0
_STYLES = {"Succeeded": "green", "Running": "cyan", "Failed": "bold red", "Error": "bold red"}
_console = console()


class StateSource(Protocol):
    """A cluster that says how a run is doing."""

    def state(self, name: str) -> WorkflowState:
        """Return the state of one run.

        Raises:
            UnavailableError: The cluster does not answer now.
        """
        ...


def follow(cluster: StateSource, name: str) -> int:
    """Show a workflow until it ends and return the run's exit code; short silences of the cluster do not matter."""
    heard_seconds = time.monotonic()
    state: WorkflowState | None = None
    with Live(console=_console, auto_refresh=False) as live:
        while True:
            try:
                state = cluster.state(name)
                heard_seconds = time.monotonic()
            except UnavailableError:
                if time.monotonic() - heard_seconds > _MAX_SILENCE_SECONDS:
                    raise
            if state is not None and state.ended:
                break
            if state is not None and _console.is_terminal:
                live.update(_table(state), refresh=True)
            time.sleep(_POLL_SECONDS)
        live.update(_table(state), refresh=True)
    _console.print(visible(f"{state.name}: {state.phase} {state.message}".rstrip()))
    return state.exit_code


def show_state(state: WorkflowState) -> None:
    """Print a workflow as it is now."""
    _console.print(visible(f"{state.name}: {state.phase} {state.message}".rstrip()))
    _console.print(_table(state))


def _table(state: WorkflowState) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for node in state.nodes:
        bar = ProgressBar(total=1.0, completed=node.progress, width=24) if node.phase == "Running" else Text("")
        phase = Text(node.phase, style=_STYLES.get(node.phase, "dim"))
        table.add_row(Text(node.task), phase, bar, Text(visible(_remark(node))))
    return table


def _remark(node: NodeState) -> str:
    parts = [f"attempt {node.attempts}"] if node.attempts > 1 else []
    return "; ".join([*parts, node.message] if node.message and node.phase != "Skipped" else parts)
