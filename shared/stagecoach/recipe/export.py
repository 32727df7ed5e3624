"""The export section of a recipe: which trained weights become which Hub directory, and where it is
pushed.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from stagecoach.paths import validate_name
from stagecoach.recipe.base import Section, placement, result

_REPO = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_BRANCH = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._/+@=-]{0,199}")


class PushConfig(Section):
    """A repository on the Hub that gets a copy of the export; an effect with its own record, never part of a
    key.
    """

    repo: str = placement()
    """``owner/name``; made if it does not exist."""
    branch: str = placement("main")
    """Branch that gets the commit; made from the default branch if it does not exist."""
    private: bool = placement(True)
    """Make a new repository private; an existing one is left as it is."""
    commit_message: str = placement("")
    """Message of the commit; empty names the run and the iteration."""

    @field_validator("branch")
    @classmethod
    def _valid_branch(cls, branch: str) -> str:
        parts = branch.split("/")
        if not _BRANCH.fullmatch(branch) or ".." in branch or branch.startswith("refs/") or branch == "HEAD":
            raise ValueError(f"expected a branch such as main or nightly/v2, got {branch[:120]!r}")
        if any(not part or part.startswith(".") or part.endswith((".", ".lock")) for part in parts):
            raise ValueError(f"expected a branch that git takes (no part begins with '.'), got {branch[:120]!r}")
        return branch

    @field_validator("repo")
    @classmethod
    def _valid_repo(cls, repo: str) -> str:
        if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
            raise ValueError(f"expected a Hub repository such as my-team/my-model, got {repo[:120]!r}")
        return repo


class GateConfig(Section):
    """What an export must fulfil to be released; compared from what the training recorded, without loading a model."""

    max_loss_increase: float = placement(0.01, ge=0.0)
    """Largest amount, in nats a token, by which the held-out loss may be above that of the released export, on the
    held-out documents that both have seen."""
    min_common_documents: PositiveInt = placement(20)
    """With fewer held-out documents in common (by hash, with the same number of targets) the candidate is refused."""
    min_right_share: float | None = placement(None, ge=0.0, le=1.0)
    """Share of ``train.tasks`` that the candidate must answer right; None does not ask."""


class ExportConfig(Section):
    """What ``export`` writes."""

    dtype: Literal["bf16", "fp16", "fp32"] = result("bf16")
    """Type of the exported weights; fp32 takes the masters."""
    iteration: Literal["last", "best"] | Annotated[int, Field(ge=0)] = result("last")
    """Which checkpoint: the last, the one with the lowest held-out loss, or a number; 0 is the untrained
    model."""
    max_file_size_bytes: PositiveInt = result(5_000_000_000)
    """Largest safetensors file; a larger model is spread over several with an index."""
    release: str | None = placement(None)
    """Name of the model under ``releases/`` for which this export is a candidate; None promotes nothing."""
    gate: GateConfig = placement(GateConfig())
    """What the candidate must fulfil; without a release there is no gate."""
    push: PushConfig | None = placement(None)
    """Repository on the Hub that gets a copy; None pushes nothing."""

    @field_validator("release")
    @classmethod
    def _valid_release(cls, release: str | None) -> str | None:
        return None if release is None else validate_name(release, "release name")
