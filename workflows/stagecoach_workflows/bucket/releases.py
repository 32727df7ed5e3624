"""What is released under which name, what became of a run's export, and the way back to an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError, UnavailableError
from stagecoach.paths import release_prefix
from stagecoach.plan_file import Plan
from stagecoach.records import last_number
from stagecoach.releases import Release, append_release, check_export, read_releases, release_names, serving
from stagecoach.storage.base import ObjectStore


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseRow:
    """One line of ``stagecoach releases``."""

    name: str
    number: int
    """Number of the newest record."""
    export: str | None
    outcome: str
    """Of the newest record; ``unreadable`` if one of the history is damaged, as then nobody knows what serves."""
    unix_seconds: float | None
    problem: str | None = None
    """What is damaged, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferOutcome:
    """What became of the export that a run offered."""

    name: str
    number: int
    release: Release

    def sentence(self) -> str:
        """Return it for people."""
        if self.release.outcome == "refused":
            return f"not released as {self.name}: {'; '.join(self.release.reasons)}"
        return f"released as {self.name} (number {self.number})"


def list_releases(store: ObjectStore) -> list[ReleaseRow]:
    """Return what serves under each name, and what happened last."""
    rows = []
    for name in release_names(store):
        try:
            history = read_releases(store, name)
        except CorruptObjectError as error:
            number = last_number(store, release_prefix(name))
            rows.append(
                ReleaseRow(
                    name=name,
                    number=number,
                    export=None,
                    outcome="unreadable",
                    unix_seconds=None,
                    problem=str(error),
                )
            )
            continue
        if history:
            number = max(history)
            rows.append(
                ReleaseRow(
                    name=name,
                    number=number,
                    export=history[number].export,
                    outcome=history[number].outcome,
                    unix_seconds=history[number].unix_seconds,
                )
            )
    return rows


def offer_outcome(store: ObjectStore, plan: Plan) -> OfferOutcome | None:
    """Return what became of the plan's export if its recipe names a release; None if it was not offered (yet)."""
    name = (plan.recipe.get("export") or {}).get("release")
    if not name or "export" not in plan.tasks:
        return None
    output = plan.tasks["export"].output
    found = [
        (number, release)
        for number, release in read_releases(store, str(name)).items()
        if release.candidate == output and release.outcome != "rolled back"
    ]
    if not found:
        return None
    number, release = found[-1]
    return OfferOutcome(name=str(name), number=number, release=release)


def roll_back(store: ObjectStore, name: str, to: int | None, reason: str) -> tuple[int, Release]:
    """Write the record that makes an earlier promoted export serve again, and return it with its number.

    Args:
        store: The bucket.
        name: The release.
        to: Number of the record whose export shall serve; None takes what served before the export that serves now.
        reason: Why, for the record.

    Raises:
        MissingInputError: There is no such release or record, or nothing to go back to, or that export is gone.
        CorruptObjectError: That export is not the one that was promoted.
        UnavailableError: Somebody else wrote a record at this moment.
    """
    history = read_releases(store, name)
    current = serving(history)
    if current is None:
        raise MissingInputError(f"release {name}: nothing has been promoted under this name in {store.url}")
    number = _previous(name, history) if to is None else to
    if number not in history or history[number].export is None:
        known = ", ".join(str(known) for known, release in history.items() if release.export is not None)
        raise MissingInputError(f"release {name}: expected one of the numbers {known}, got {number}")
    target = history[number]
    export = str(target.export)
    if export == current:
        raise ConfigError(f"release {name}: {export} serves already; `stagecoach releases {name}` shows the history")
    digest = check_export(store, export, target.manifest_sha256, f"release {name}, number {number}")
    release = Release(
        outcome="rolled back",
        candidate=current,
        export=export,
        manifest_sha256=digest,
        reasons=(f"back to number {number}", *([reason] if reason else [])),
    )
    if not append_release(store, name, history, release):
        raise UnavailableError(f"release {name}: another record was written at this moment; look at it and try again")
    return max(history) + 1, release


def _previous(name: str, history: Mapping[int, Release]) -> int:
    """Return the number of the record under which the export served that was replaced by the one that serves.

    Promotions are a stack, from which a rollback takes what it leaves: A, B, back to A, C leaves A below C, not B.
    """
    served: list[tuple[int, str]] = []
    for number, release in history.items():
        export = release.export
        if export is None:
            continue
        if release.outcome == "rolled back" and any(below == export for _, below in served):
            while served[-1][1] != export:
                served.pop()
        if not served or served[-1][1] != export:
            served.append((number, export))
    if len(served) < 2:
        raise MissingInputError(
            f"release {name}: {served[-1][1]} is the first export that was promoted; nothing is before it"
        )
    return served[-2][0]
