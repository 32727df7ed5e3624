"""The wiring that is the same around every stage: flags -> plan -> already there? -> run -> manifest -> exit code.

    python -m stagecoach_pack --store URL --run ID [--task NAME]    config and inputs come from the run's plan
    python -m stagecoach_pack --store URL --config FILE|-           one task by hand: {task, config, inputs, name}
    .. --check                                                      validate config and inputs, and stop

One safe token names the work, so nothing on a command line can be injected.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import logging
import platform
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagecoach import last_words
from stagecoach.errors import AcceleratorError, ConfigError, StagecoachError
from stagecoach.keys import content_key
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.outputs import Input, Output, input_key, open_input
from stagecoach.paths import new_try_prefix, output_prefix, validate_name
from stagecoach.plan_file import read_plan
from stagecoach.progress import Progress
from stagecoach.recipe.base import Section
from stagecoach.records import write_record
from stagecoach.redaction import log_to_stderr, show_traceback, without_secrets
from stagecoach.run_log import RunLog, copied_stderr
from stagecoach.settings import Settings
from stagecoach.stages import TASKS, TaskKind
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach.system_errors import refusal_of_the_system

_log = logging.getLogger("stagecoach")
_RECORDED_PACKAGES = (
    "stagecoach",
    "numpy",
    "torch",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "huggingface-hub",
    "boto3",
    "pyarrow",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One task that this process shall do, resolved."""

    kind: TaskKind
    task: str
    config: Section
    inputs: Mapping[str, str]
    name: str
    key: str
    output: str
    run_id: str | None


@dataclass(slots=True)
class _Clock:
    """Seconds by phase, for the manifest's timings."""

    started_unix_seconds: float = field(default_factory=time.time)
    _last: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[f"{phase}_seconds"] = round(now - self._last, 3)
        self._last = now


def stage_main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Run one task of ``stage`` and return the process's exit code (see ``stagecoach.errors``).

    Args:
        stage: One of ``stages.STAGES``.
        arguments: Command line without the program's name; None takes the process's own.
    """
    flags = _parser(stage).parse_args(arguments)
    if arguments is None:
        faulthandler.enable()  # a crash in native code leaves every thread's Python stack in the log
    with copied_stderr() as log:
        log_to_stderr(logging.INFO, "%(asctime)s %(levelname).1s %(name)s: %(message)s")
        return _run(stage, flags, log)


def _run(stage: str, flags: argparse.Namespace, log: RunLog) -> int:
    job: Job | None = None
    store: ObjectStore | None = None
    try:
        settings = Settings.from_environ()
        store = open_store(flags.store, settings)
        job = (
            _job_of_plan(store, stage, flags.run, flags.task)
            if flags.run
            else _job_by_hand(store, stage, flags.config, settings)
        )
        if flags.check:
            _check(job, store, settings)
        else:
            _do(job, store, settings, log)
        return 0
    except BaseException as error:
        code, sentence = exit_code_of(error)
        _log.error("%s", sentence)
        last_words.leave(sentence)
        if store is not None and job is not None and not flags.check:
            _record(store, job, {"state": "failed", "exit_code": code, "message": sentence})
        return code


def exit_code_of(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one sentence for an error, without secrets; a bug also leaves its traceback in the log."""
    code, sentence = _exit_code_of(error)
    return code, without_secrets(sentence)


def _exit_code_of(error: BaseException) -> tuple[int, str]:
    if isinstance(error, StagecoachError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted from the keyboard"
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), "exit was asked for"
    refusal = refusal_of_the_system(error)
    if refusal is not None:
        return refusal.exit_code, str(refusal)
    if type(error).__name__ in (
        "OutOfMemoryError",
        "DistBackendError",
        "AcceleratorError",
    ):  # torch's, which cannot be imported here
        return AcceleratorError.exit_code, f"accelerator: {error}"
    show_traceback(error)
    return 70, f"a bug in Stagecoach: {type(error).__name__}: {error}"


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m stagecoach_{stage}", description=f"The {stage} stage of Stagecoach."
    )
    parser.add_argument(
        "--store",
        required=True,
        metavar="URL",
        help="where everything is kept: a folder, file://.., s3://bucket/prefix",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="ID", help="take config and inputs from this run's plan")
    source.add_argument(
        "--config", metavar="FILE", help="run one task by hand from a JSON file, or '-' for standard input"
    )
    parser.add_argument(
        "--task", metavar="NAME", default=stage, help="which task of the plan, where the stage has several"
    )
    parser.add_argument("--check", action="store_true", help="validate config and inputs, then stop")
    return parser


def _job_of_plan(store: ObjectStore, stage: str, run_id: str, task: str) -> Job:
    entry = read_plan(store, run_id).task(task)
    if entry.stage != stage:
        raise ConfigError(
            f"--task {task}: belongs to stage {entry.stage!r}, not {stage!r}; use python -m stagecoach_{entry.stage}"
        )
    kind = TASKS[entry.kind]
    return Job(
        kind=kind,
        task=task,
        config=_config(kind, entry.config, f"plan of run {run_id}"),
        inputs=entry.inputs,
        name=entry.name,
        key=entry.key,
        output=entry.output,
        run_id=run_id,
    )


def _job_by_hand(store: ObjectStore, stage: str, file: str, settings: Settings) -> Job:
    """Read {"task", "config", "inputs": {name: folder}, "name"}; the key comes from the inputs' own manifests."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        values = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {file}: expected a JSON file, got: {error}") from error
    if not isinstance(values, dict) or not set(values) <= {"task", "config", "inputs", "name"}:
        raise ConfigError(f"--config {file}: expected an object with task, config, inputs and name")
    task = str(values.get("task", stage))
    kind = TASKS.get(task)
    if kind is None or kind.stage != stage:
        known = ", ".join(name for name, row in TASKS.items() if row.stage == stage)
        raise ConfigError(f"--config {file}: task: expected one of {known}, got {task!r}")
    config = _config(kind, values.get("config", {}), file)
    given = values.get("inputs", {})
    if not isinstance(given, dict):
        raise ConfigError(f"--config {file}: inputs: expected an object of names and folders, got {str(given)[:80]}")
    inputs = {str(name): str(prefix) for name, prefix in given.items()}
    keys = {name: input_key(open_input(store, prefix, settings.scratch_dir)) for name, prefix in sorted(inputs.items())}
    key = content_key(kind.name, kind.output_version, config, keys)
    name = validate_name(str(values.get("name", "by-hand")), "name")
    return Job(
        kind=kind,
        task=task,
        config=config,
        inputs=inputs,
        name=name,
        key=key,
        output=output_prefix(kind.writes, name, key),
        run_id=None,
    )


def _config(kind: TaskKind, values: Any, origin: str) -> Section:
    try:
        return kind.config.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "config"
        raise ConfigError(f"{origin}: {where}: {problem['msg']}") from error


def _check(job: Job, store: ObjectStore, settings: Settings) -> None:
    scratch = settings.scratch_dir / "check"
    inputs = {name: open_input(store, prefix, scratch) for name, prefix in job.inputs.items()}
    module = importlib.import_module(f"stagecoach_{job.kind.stage}.run")
    if hasattr(module, "check"):
        module.check(job.config, inputs)
    _log.info("%s: config and inputs are valid", job.task)


def _do(job: Job, store: ObjectStore, settings: Settings, log: RunLog) -> None:
    clock = _Clock()
    done = read_manifest(store, job.output)
    if done is not None:
        _log.info("%s: already done (%s)", job.task, job.output)
        _finish(job, store, settings, done)
        _leave_artifacts(store, settings, done)
        _record(store, job, {"state": "already done", "exit_code": 0})
        return
    number = _record(store, job, {"state": "started"})
    if job.run_id is not None and number is not None:
        log.keep_in(store, job.run_id, job.task, number)
    scratch = settings.scratch_dir / new_try_prefix(f"{job.task}-").rstrip("/")
    try:
        _make(job, store, settings, scratch, clock)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make(job: Job, store: ObjectStore, settings: Settings, scratch: Path, clock: _Clock) -> None:
    progress = Progress(settings.progress_file)
    progress.update(0, 1)
    inputs: dict[str, Input] = {
        name: open_input(store, prefix, scratch / "inputs") for name, prefix in job.inputs.items()
    }
    output = Output(store, job.output, scratch / "output", progress, job.run_id)
    module = importlib.import_module(f"stagecoach_{job.kind.stage}.run")
    clock.lap("start")
    module.run(job.config, inputs, output, store)
    clock.lap("run")
    ours = output.commit(
        task=job.task,
        key=job.key,
        name=job.name,
        output_version=job.kind.output_version,
        inputs=dict(job.inputs),
        config=job.config.model_dump(mode="json"),
        versions=_versions(),
        timings={
            "started_unix_seconds": clock.started_unix_seconds,
            "finished_unix_seconds": time.time(),
            **clock.seconds,
        },
        provenance=_provenance(job, settings),
    )
    progress.update(1, 1)
    committed = read_manifest(store, job.output)
    if committed is not None:
        _finish(job, store, settings, committed)
        _leave_artifacts(store, settings, committed)
        _log.info(
            "%s: %s (%d objects, %d bytes)%s",
            job.task,
            job.output,
            len(committed.objects),
            committed.size_bytes,
            "" if ours else "; an equal run was first",
        )
    _record(store, job, {"state": "done", "exit_code": 0, **clock.seconds})


def _finish(job: Job, store: ObjectStore, settings: Settings, manifest: Manifest) -> None:
    """Let the stage do what is wanted beside its output; each effect has a record of its own and happens once."""
    if not job.kind.has_effects:
        return
    scratch = settings.scratch_dir / new_try_prefix(f"{job.task}-finish-").rstrip("/")
    try:
        module = importlib.import_module(f"stagecoach_{job.kind.stage}.run")
        module.finish(job.config, Input(store, job.output, manifest, scratch), store)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _leave_artifacts(store: ObjectStore, settings: Settings, manifest: Manifest) -> None:
    """Leave the small files that people want to see in the workflow engine: the manifest, its numbers, reports."""
    folder = settings.artifacts_dir
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    numbers = {"task": manifest.task, "summary": manifest.summary, "timings": manifest.timings}
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    for name, entry in manifest.objects.items():
        if name in ("report.html", "report.json"):
            (folder / name).write_bytes(store.get(entry.path))


def _record(store: ObjectStore, job: Job, values: dict[str, Any]) -> int | None:
    """Write a record of this task and return its number; None where there is no run, or the store does not answer."""
    if job.run_id is None:
        return None
    try:
        return write_record(
            store,
            job.run_id,
            job.task,
            {"output": job.output, "key": job.key, "host": socket.gethostname(), **values},
        )
    except StagecoachError as error:
        _log.warning("the record of this task was not written: %s", error)
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    installed = {name for name in (dist.metadata["Name"] for dist in distributions()) if name}
    for package in _RECORDED_PACKAGES:
        if package in installed:
            try:
                found[package] = version(package)
            except PackageNotFoundError:  # half-removed metadata
                continue
    return found


def _provenance(job: Job, settings: Settings) -> dict[str, str]:
    known = {
        "run_id": job.run_id,
        "git_revision": settings.git_revision,
        "image_digest": settings.image_digest,
        "pod": settings.pod_name,
        "host": socket.gethostname(),
        "machine": platform.machine(),
    }
    return {name: value for name, value in known.items() if value}
