"""Offers a finished export as a release: gathers what the gate compares, asks the gate, and writes the next record.

Refused is an outcome like promoted: recorded, and not asked again before the gate or the export is another one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from stagecoach.errors import UnavailableError
from stagecoach.formats.checkpoint import INDEX_NAME
from stagecoach.metrics_file import newest, read_finished_metrics
from stagecoach.outputs import Input, open_input
from stagecoach.recipe.export import ExportConfig
from stagecoach.releases import (
    Evidence,
    Release,
    append_release,
    check_export,
    offered,
    read_evidence,
    read_releases,
    serving,
    write_evidence,
)
from stagecoach.storage.base import ObjectStore
from stagecoach_export.gate import judge

_MAX_LATE = 8  # writers at once that each made this one late
_log = logging.getLogger("stagecoach.export")


def offer(config: ExportConfig, name: str, exported: Input, store: ObjectStore, scratch: Path) -> Release:
    """Promote the export or record why not; does nothing if this gate has decided on it before.

    Args:
        config: The recipe's export section.
        name: The release.
        exported: The committed export.
        store: Holds releases and the training's numbers.
        scratch: Local folder for objects that must be copied to be read.

    Returns:
        The record that says what became of the export.

    Raises:
        MissingInputError: What the export was made from is gone before its numbers were kept.
        UnavailableError: Others kept writing records of this release at the same time.
    """
    gate = config.gate.model_dump(mode="json")
    for _ in range(_MAX_LATE):
        history = read_releases(store, name)
        before = offered(history, exported.prefix, gate)
        if before is not None:
            _log.info("release %s: %s", name, sentence(name, before[1]))
            return before[1]
        release = _decide(config, name, exported, store, scratch, serving(history))
        if append_release(store, name, history, release):
            _log.info("%s", sentence(name, release))
            return release
    raise UnavailableError(f"release {name}: other runs keep writing its records; try again")


def sentence(name: str, release: Release) -> str:
    """Return what became of the candidate, for people."""
    if release.outcome == "refused":
        return f"not released as {name}: {'; '.join(release.reasons)}"
    return f"released as {name}"


def _decide(
    config: ExportConfig, name: str, exported: Input, store: ObjectStore, scratch: Path, current: str | None
) -> Release:
    evidence = read_evidence(store, name, exported.prefix) or _gather(exported, store, scratch)
    reasons: tuple[str, ...]
    if evidence is None:
        reasons = ("its training still runs; an export of a finished training can be released",)
        numbers: dict[str, object] = {}
    else:
        write_evidence(store, name, exported.prefix, evidence)
        released = (
            None if current is None else read_evidence(store, name, current) or Evidence(iteration=0, documents={})
        )
        verdict = judge(config.gate, evidence, released)
        reasons, numbers = verdict.reasons, verdict.numbers()
    serves = current if reasons else exported.prefix
    return Release(
        outcome="refused" if reasons else "promoted",
        candidate=exported.prefix,
        export=serves,
        manifest_sha256=check_export(store, serves, None, f"release {name}") if serves else None,
        reasons=reasons,
        gate=config.gate.model_dump(mode="json"),
        comparison=numbers,
        run_id=exported.manifest.provenance.get("run_id"),
    )


def _gather(exported: Input, store: ObjectStore, scratch: Path) -> Evidence | None:
    """Read the held-out losses and answers of the exported iteration; None for a training that still runs."""
    trained = open_input(store, exported.manifest.inputs["trained"], scratch / "trained")
    if INDEX_NAME in trained.names():
        return None
    iteration = int(exported.summary["iteration"])
    records = list(read_finished_metrics(trained))
    evaluation = newest(records, "evaluation", iteration) or {"documents": []}
    answers = newest(records, "answers", iteration) or {"answers": []}
    return Evidence(
        iteration=iteration,
        documents={name: (float(loss), int(targets)) for name, loss, targets in evaluation["documents"]},
        answers=tuple(answer for answer in answers["answers"] if "expected" in answer),
    )
