"""What a rank process is told: where everything lies, which attempt this is, and from which checkpoint it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from stagecoach.outputs import Input, open_input
from stagecoach.paths import checkpoint_prefix
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.base import ObjectStore
from stagecoach_train.train_state import CheckpointRef

CHECKPOINT = "checkpoint"
"""Name among the files for those of the checkpoint that is resumed."""

Files = dict[str, dict[str, str]]
"""Input name -> object name -> local file whose bytes were checked."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who writes, and from where it goes on.

    Attributes:
        attempt: This attempt's number; 0 says that the training is finished already.
        resume: The checkpoint to go on from; None begins with the weights of the shards.
    """

    attempt: int
    resume: CheckpointRef | None

    def to_json(self) -> str:
        """Return it as text."""
        resume = None if self.resume is None else [self.resume.iteration, self.resume.attempt]
        return json.dumps({"attempt": self.attempt, "resume": resume})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` returned."""
        values = json.loads(text)
        return cls(values["attempt"], None if values["resume"] is None else CheckpointRef(*values["resume"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training, as every rank of a machine sees it.

    Attributes:
        store_url: Where everything is kept.
        trained: Folder of the training's output, with its final slash.
        config: The train section.
        inputs: Input name -> folder.
        scratch: Folder for temporary files.
        assignment: None where rank 0 runs elsewhere and will say it.
        files: Checked local files; None where this machine has not looked yet.
        taken_unix_seconds: When the attempt was taken; None on machines that did not take it.
    """

    store_url: str
    trained: str
    config: TrainConfig
    inputs: dict[str, str]
    scratch: Path
    assignment: Assignment | None = None
    files: Files | None = field(default=None)
    taken_unix_seconds: float | None = None

    def with_assignment(self, assignment: Assignment, files: Files | None) -> Job:
        """Return a copy that knows who writes and where the files are."""
        return replace(self, assignment=assignment, files=files)

    def write(self, path: Path) -> None:
        """Write the job for rank processes to read."""
        values: dict[str, Any] = {
            "store_url": self.store_url,
            "trained": self.trained,
            "config": self.config.model_dump(mode="json"),
            "inputs": self.inputs,
            "scratch": str(self.scratch),
            "assignment": None if self.assignment is None else self.assignment.to_json(),
            "files": self.files,
            "taken_unix_seconds": self.taken_unix_seconds,
        }
        path.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        assignment = values.pop("assignment")
        return cls(
            **{
                **values,
                "config": TrainConfig.model_validate(values["config"]),
                "scratch": Path(values["scratch"]),
                "assignment": None if assignment is None else Assignment.from_json(assignment),
            }
        )


class CheckedInput(Input):
    """An input whose objects were checked by another process of this machine."""

    def __init__(self, source: Input, paths: dict[str, str]) -> None:
        """Take the manifest of ``source`` and the local files that were checked."""
        super().__init__(source.store, source.prefix, source.manifest, Path())
        self._checked = {name: Path(path) for name, path in paths.items()}


def checked_input(store: ObjectStore, job: Job, name: str) -> CheckedInput:
    """Return an input of the job, or the resumed checkpoint under the name ``CHECKPOINT``, with its checked files."""
    files, assignment = job.files, job.assignment
    assert files is not None and assignment is not None, "the files are resolved before they are read"
    if name == CHECKPOINT:
        assert assignment.resume is not None, "only a resumed training has a checkpoint to read"
        prefix = checkpoint_prefix(job.trained, assignment.resume.iteration, assignment.resume.attempt)
    else:
        prefix = job.inputs[name]
    return CheckedInput(open_input(store, prefix, job.scratch), files[name])
