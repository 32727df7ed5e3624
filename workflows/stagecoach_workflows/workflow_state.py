"""Where a run on a cluster stands, whichever kind of cluster it is: plain data for people and exit codes."""

from __future__ import annotations

from dataclasses import dataclass

from stagecoach.errors import StagecoachError

ENDED = ("Succeeded", "Failed", "Error")
"""Phases of Argo that a workflow or a node does not leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """One task of a workflow as a cluster reports it, its attempts taken together."""

    task: str
    phase: str
    """Pending, Running, Succeeded, Skipped, Omitted, Failed or Error."""
    progress: float
    """Share that is done, 0 to 1."""
    attempts: int
    started: str
    finished: str
    message: str
    exit_code: int | None
    node_id: str | None
    """Argo's id of the last attempt, if that is a pod; the id of a SLURM job; None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkflowState:
    """One workflow as a cluster reports it."""

    name: str
    run_id: str
    phase: str
    message: str
    started: str
    finished: str
    nodes: tuple[NodeState, ...]

    @property
    def ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self.phase in ENDED

    @property
    def exit_code(self) -> int:
        """Exit code of the run: of the task that failed first, 0 if none did, 70 where nothing is known."""
        if self.phase == "Succeeded":
            return 0
        failed = sorted(
            (node for node in self.nodes if node.phase in ("Failed", "Error")), key=lambda node: node.finished
        )
        codes = [node.exit_code for node in failed if node.exit_code is not None and node.exit_code > 0]
        return codes[0] if codes else StagecoachError.exit_code
