"""A run's plan as it lies in the store: every task's decision, key, inputs and resolved config, written once."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stagecoach.errors import CorruptObjectError, MissingInputError, ObjectMissing
from stagecoach.paths import plan_key, validate_run_id
from stagecoach.sealed import read_record, seal, unseal
from stagecoach.storage.base import ObjectStore


class TaskPlan(BaseModel):
    """What one task of the run shall do."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str
    """Name of the task; ``download-data`` tasks carry their source's name behind it."""
    kind: str
    """Name of the task's row in ``stages.TASKS``."""
    stage: str
    """The stage, and so the image, that runs it."""
    decision: Literal["run", "skip"]
    """Whether it has anything to do in this run."""
    reason: str
    """Why, in words."""
    name: str
    """Readable part of the output's folder."""
    key: str
    """Content key of the output."""
    output: str
    """Folder of the output, with its final slash."""
    inputs: dict[str, str]
    """Folder of each input, by input name."""
    config: dict[str, Any]
    """The task's resolved config."""


class Plan(BaseModel):
    """The plan of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = 1
    """Version of this record's own form."""
    run_id: str
    """The run."""
    recipe: dict[str, Any]
    """The whole recipe as it was given, after ``--set``."""
    tasks: dict[str, TaskPlan]
    """Every task, by name, in an order in which they may run."""
    created_unix_seconds: float
    """When the plan was made."""
    versions: dict[str, str] = {}
    """Versions of what made the plan."""

    def task(self, name: str) -> TaskPlan:
        """Return one task's plan.

        Raises:
            MissingInputError: The plan has no such task.
        """
        if name not in self.tasks:
            raise MissingInputError(
                f"run {self.run_id}: expected a task {name!r} in its plan, which has {', '.join(self.tasks)}"
            )
        return self.tasks[name]


def read_plan(store: ObjectStore, run_id: str) -> Plan:
    """Return the plan of a run.

    Raises:
        MissingInputError: There is none under that id.
        CorruptObjectError: What lies there is no plan of a form that this version reads.
    """
    key = plan_key(validate_run_id(run_id))
    try:
        return read_record(store, key, _parse_plan)
    except ObjectMissing as error:
        raise MissingInputError(
            f"{store.url.rstrip('/')}/{key}: run {run_id} has no plan here; check the store and the run id"
        ) from error


def plan_bytes(plan: Plan) -> bytes:
    """Return a plan as it lies in the store."""
    return seal(json.loads(plan.model_dump_json()))


def _parse_plan(data: bytes, address: str) -> Plan:
    try:
        return Plan.model_validate(unseal(data, address))
    except CorruptObjectError as error:
        raise CorruptObjectError(f"{error}; start a new run") from error
    except ValidationError as error:
        raise CorruptObjectError(f"{address}: not a plan of this version of Stagecoach; start a new run") from error
