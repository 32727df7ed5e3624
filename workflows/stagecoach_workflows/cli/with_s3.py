"""``stagecoach run --store s3``: the same command again, with an S3 server that lives as long as it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from stagecoach.settings import child_environ
from stagecoach_workflows.local_s3 import BUCKET, local_s3


def run_with_s3(work: Path) -> int:
    """Start a server, run this process's own command against it, stop the server, and return the exit code."""
    with local_s3(work / "s3") as environ:
        child = subprocess.Popen(_command(sys.argv[1:]), env=child_environ(**environ))
        # a terminal sends Ctrl-C to the child as well; the server must outlive it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
        return child.wait()


def _command(arguments: list[str]) -> list[str]:
    url = f"s3://{BUCKET}"
    replaced = [
        url if argument == "s3" and before == "--store" else f"--store={url}" if argument == "--store=s3" else argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    return [sys.executable, "-m", "stagecoach_workflows", *replaced]
