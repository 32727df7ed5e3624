"""The exit hook: records how a run ended, tells a webhook, Slack or GitHub, and leaves the run's report as an artifact;
its own failure never fails a run.

    python -m stagecoach_workflows.notify --store URL --workflow NAME --created SECONDS --status Succeeded [--run ID] ..

Where it reports to lies in a folder of small files, a mounted Secret: ``webhook-url``, ``slack-webhook-url``,
``github-token`` (with ``--commit owner/repository@sha``) and, for GitHub Enterprise, ``github-api-url``. What is not
there is not told.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stagecoach.errors import StagecoachError
from stagecoach.paths import finished_prefix, task_record_prefix
from stagecoach.plan_file import Plan, read_plan
from stagecoach.records import read_numbered, write_numbered
from stagecoach.redaction import log_to_stderr
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.bucket.releases import offer_outcome
from stagecoach_workflows.report.write import write_report
from stagecoach_workflows.run_ids import run_id_of_workflow

_TIMEOUT_SECONDS = 20
_GITHUB_API = "https://api.github.com"
_COMMIT = re.compile(r"([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)@([0-9a-f]{40})")
_MAX_DESCRIPTION = 140  # what GitHub takes

_log = logging.getLogger("stagecoach.notify")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run ended."""

    run_id: str
    recipe: str
    workflow: str
    namespace: str
    status: str
    """Succeeded, Failed or Error, as Argo says."""
    failed_task: str | None = None
    exit_code: int | None = None
    message: str = ""
    export: str = ""
    """Address of the export, if there is one."""
    release: str = ""
    """What became of the export as a release: promoted, or refused and why; empty if the recipe names none."""

    @property
    def succeeded(self) -> bool:
        """Whether all went well."""
        return self.status == "Succeeded"

    def sentence(self) -> str:
        """Return all of it in one line for people."""
        what = f"{self.recipe or 'run'} {self.run_id}"
        if self.succeeded:
            where = f": {self.export}" if self.export else ""
            return f"{what} succeeded{where}{f'; {self.release}' if self.release else ''}"
        where = f" in {self.failed_task}" if self.failed_task else ""
        return f"{what} failed{where}: {self.message or self.status}"


def ending(store: ObjectStore, run_id: str, *, status: str, workflow: str, namespace: str) -> Ending:
    """Return how a run ended, with what its tasks recorded; a run without a plan failed before it had one."""
    known: dict[str, Any] = {"run_id": run_id, "workflow": workflow, "namespace": namespace, "status": status}
    try:
        plan = read_plan(store, run_id)
    except StagecoachError as error:
        return Ending(**known, recipe="", failed_task="plan", message=str(error))
    recipe = str(plan.recipe.get("name", ""))
    if status == "Succeeded":
        outcome = offer_outcome(store, plan)
        return Ending(
            **known,
            recipe=recipe,
            export=f"{store.url.rstrip('/')}/{plan.task('export').output}",
            release=outcome.sentence() if outcome is not None else "",
        )
    return Ending(**known, recipe=recipe, **_failure(store, plan))


def tell(folder: Path, end: Ending, commit: str) -> list[str]:
    """Tell everybody that ``folder`` names, and return who was told; each failure is logged and nothing more."""
    requests: dict[str, urllib.request.Request] = {}
    if (url := _secret(folder, "webhook-url")) is not None:
        requests["webhook"] = _post(url, {**asdict(end), "text": end.sentence()}, {})
    if (url := _secret(folder, "slack-webhook-url")) is not None:
        requests["Slack"] = _post(url, {"text": end.sentence()}, {})
    token, found = _secret(folder, "github-token"), _COMMIT.fullmatch(commit)
    if token is not None and found is not None:
        api = _secret(folder, "github-api-url") or _GITHUB_API
        requests["GitHub"] = _post(
            f"{api.rstrip('/')}/repos/{found.group(1)}/statuses/{found.group(2)}",
            {
                "state": "success" if end.succeeded else "failure",
                "context": f"stagecoach/{end.recipe or 'run'}",
                "description": end.sentence()[:_MAX_DESCRIPTION],
            },
            {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"},
        )
    return [name for name, request in requests.items() if _sent(name, request)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and tell; always return 0, because a hook that fails would fail the run."""
    log_to_stderr(logging.INFO, "%(message)s")
    flags = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environ()
        store = open_store(flags.store, settings)
        run_id = flags.run or run_id_of_workflow(flags.workflow, flags.created)
        end = ending(store, run_id, status=flags.status, workflow=flags.workflow, namespace=flags.namespace)
        _record(store, end, flags.runner)
        told = tell(flags.secrets, end, flags.commit)
        _log.info("%s; told: %s", end.sentence(), ", ".join(told) or "nobody")
        if settings.artifacts_dir is not None:
            write_report(store, run_id, settings.artifacts_dir / "report.html")
    except Exception as error:
        _log.warning("the end of the run was not told: %s: %s", type(error).__name__, error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stagecoach_workflows.notify", description="Tells how a run ended.")
    parser.add_argument("--store", required=True, metavar="URL")
    parser.add_argument("--workflow", required=True, metavar="NAME")
    parser.add_argument("--created", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--status", required=True)
    parser.add_argument("--run", default="", metavar="ID")
    parser.add_argument("--namespace", default="")
    parser.add_argument("--runner", default="argo", choices=("argo", "slurm"))
    parser.add_argument("--commit", default="", metavar="OWNER/REPOSITORY@SHA")
    parser.add_argument("--secrets", type=Path, default=Path("/work/notify"), metavar="DIR")
    return parser


def _record(store: ObjectStore, end: Ending, runner: str) -> None:
    state = "succeeded" if end.succeeded else "failed"
    values = {"state": state, "exit_code": 0 if end.succeeded else end.exit_code or 70, "runner": runner}
    details = {
        "unix_seconds": round(time.time(), 3),
        "failed_task": end.failed_task,
        "message": end.message,
        "workflow": end.workflow,
        **({"release": end.release} if end.release else {}),
    }
    write_numbered(store, finished_prefix(end.run_id), {**values, **details})


def _failure(store: ObjectStore, plan: Plan) -> dict[str, Any]:
    """Return the first task, in their order, whose last record says that it failed."""
    for task in plan.tasks:
        records = read_numbered(store, task_record_prefix(plan.run_id, task))
        last: Mapping[str, Any] = records[max(records)] if records else {}
        if last.get("state") == "failed":
            return {"failed_task": task, "exit_code": last.get("exit_code"), "message": str(last.get("message", ""))}
    return {"message": "no task recorded why; see the workflow's nodes"}


def _secret(folder: Path, name: str) -> str | None:
    try:
        return (folder / name).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _post(url: str, values: Mapping[str, Any], headers: Mapping[str, str]) -> urllib.request.Request:
    if not url.startswith(("https://", "http://")):
        raise ValueError("an address to report to: expected http:// or https://")
    body = json.dumps(dict(values)).encode()
    return urllib.request.Request(
        url, data=body, headers={"Content-Type": "application/json", **headers}, method="POST"
    )


def _sent(name: str, request: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            return True
    except (OSError, ValueError) as error:  # the address may hold a secret, so it is not shown
        _log.warning("%s was not told: %s", name, type(error).__name__)
        return False


if __name__ == "__main__":
    raise SystemExit(main())
