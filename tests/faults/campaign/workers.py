"""A process that runs cases one after the other: everything imported once, no threads, so that it may fork stages."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from tests.faults.campaign.bench import Bench
from tests.faults.campaign.cases import SCOPES, Case, Result
from tests.faults.campaign.run import run_case
from tests.micro_run import MicroWork

_LATE = ("stagecoach_train.worker", "stagecoach.storage.s3", "tokenizers", "pyarrow.parquet", "botocore.session")
_bench: Bench | None = None


def start(folder: Path, micro: MicroWork, environ: dict[str, str], costs: Path | None) -> None:
    """Import every stage and what it imports late, so that forks have it, and prepare the bench."""
    global _bench
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY"):
        os.environ.pop(name, None)
    os.environ.update(environ)
    for module in (*(f"stagecoach_{stage}.run" for stage in SCOPES), *_LATE):
        importlib.import_module(module)
    folder = folder / str(os.getpid())
    folder.mkdir(parents=True)
    _bench = Bench(folder, micro, environ)
    if costs is not None:
        _bench.load_costs(costs)


def measure(file: Path) -> None:
    """Write down what undisturbed tasks cost."""
    assert _bench is not None
    _bench.measure(file)


def run(seed: int) -> Result:
    """Run one case."""
    assert _bench is not None
    return run_case(_bench, Case(seed))
