"""What ``submit`` and ``status`` share: making the objects of a run, and showing how it goes until it ends."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.paths import validate_run_id
from stagecoach_workflows.cli.report import console
from stagecoach_workflows.cluster import Cluster, NodeState, WorkflowState, run_label
from stagecoach_workflows.deployment import load_deployment
from stagecoach_workflows.plan import split_settings
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.render import alias_document, template_document, workflow_document
from stagecoach_workflows.run_ids import new_run_id

_POLL_SECONDS = 2.0
_MAX_SILENCE_SECONDS = 300.0
_STYLES = {"Succeeded": "green", "Running": "cyan", "Failed": "bold red", "Error": "bold red"}
_console = console()


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """The documents of one run: its template where there is a recipe, and the parameters of the workflow."""

    name: str
    template: str
    documents: tuple[dict[str, Any], ...]
    """Template and alias to make first; empty with ``--from``."""
    parameters: dict[str, str]

    @classmethod
    def of(
        cls, recipe: str, template: str, settings: Sequence[str], deployment: Path | None, images: Path | None
    ) -> Submission:
        """Read what the user typed.

        Raises:
            ConfigError: Not exactly one of recipe and template is given, or the recipe is not valid.
        """
        if bool(recipe) == bool(template):
            raise ConfigError("submit: expected a RECIPE, or --from with the name of a WorkflowTemplate")
        if template:
            joined = shlex.join(settings)
            split_settings(joined)
            return cls(name=template, template=template, documents=(), parameters={"set": joined} if joined else {})
        loaded = load_recipe(recipe, settings)
        document = template_document(loaded, load_deployment(deployment, images))
        return cls(
            name=loaded.name,
            template=document["metadata"]["name"],
            documents=(document, alias_document(document, loaded)),
            parameters={},
        )

    def submit(self, cluster: Cluster, *, store_url: str, run_id: str) -> tuple[str, str]:
        """Make what is missing and start the run; returns the workflow's name and the run id."""
        if self.documents:
            template, alias = self.documents
            cluster.ensure_template(template)
            cluster.replace_template(alias)
        run = validate_run_id(run_id) if run_id else new_run_id(self.name, time.time())
        parameters = {**self.parameters, "run": run, **({"store": store_url} if store_url else {})}
        document = workflow_document(self.template, parameters=parameters, labels=run_label(run))
        return cluster.submit(document), run


def follow(cluster: Cluster, name: str) -> int:
    """Show a workflow until it ends and return the run's exit code; short silences of the cluster do not matter."""
    heard_seconds = time.monotonic()
    state = cluster.state(name)
    with Live(console=_console, auto_refresh=False) as live:
        while not state.ended:
            if _console.is_terminal:
                live.update(_table(state), refresh=True)
            time.sleep(_POLL_SECONDS)
            try:
                state = cluster.state(name)
                heard_seconds = time.monotonic()
            except UnavailableError:
                if time.monotonic() - heard_seconds > _MAX_SILENCE_SECONDS:
                    raise
        live.update(_table(state), refresh=True)
    _console.print(f"{state.name}: {state.phase} {state.message}".rstrip(), highlight=False)
    return state.exit_code


def show_state(state: WorkflowState) -> None:
    """Print a workflow as it is now."""
    _console.print(f"{state.name}: {state.phase} {state.message}".rstrip(), highlight=False)
    _console.print(_table(state))


def _table(state: WorkflowState) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for node in state.nodes:
        bar = ProgressBar(total=1.0, completed=node.progress, width=24) if node.phase == "Running" else Text("")
        phase = Text(node.phase, style=_STYLES.get(node.phase, "dim"))
        table.add_row(Text(node.task), phase, bar, Text(_remark(node)))
    return table


def _remark(node: NodeState) -> str:
    parts = [f"attempt {node.attempts}"] if node.attempts > 1 else []
    return "; ".join([*parts, node.message] if node.message and node.phase != "Skipped" else parts)
