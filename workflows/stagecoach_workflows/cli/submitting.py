"""Makes the objects of a run on a cluster: its template and its workflow.

The alias of a recipe is left alone: schedules and other people run what it names, so only the chart and `render` set it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecoach.errors import ConfigError
from stagecoach.paths import validate_run_id
from stagecoach_workflows.cluster import Cluster, run_label
from stagecoach_workflows.deployment import load_deployment
from stagecoach_workflows.plan import split_settings
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.render import template_document, workflow_document
from stagecoach_workflows.run_ids import new_run_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """The documents of one run: its template where there is a recipe, and the parameters of the workflow."""

    name: str
    template: str
    document: dict[str, Any] | None
    """The template to make first; None with ``--from``."""
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
            return cls(name=template, template=template, document=None, parameters={"set": joined} if joined else {})
        loaded = load_recipe(recipe, settings)
        document = template_document(loaded, load_deployment(deployment, images))
        return cls(name=loaded.name, template=document["metadata"]["name"], document=document, parameters={})

    def submit(self, cluster: Cluster, *, store_url: str, run_id: str) -> tuple[str, str]:
        """Make what is missing and start the run; returns the workflow's name and the run id."""
        new_template = self.document is not None and cluster.ensure_template(self.document)
        run = validate_run_id(run_id) if run_id else new_run_id(self.name, time.time())
        parameters = {**self.parameters, "run": run, **({"store": store_url} if store_url else {})}
        document = workflow_document(self.template, parameters=parameters, labels=run_label(run))
        return cluster.submit(document, new_template=new_template), run
