"""Makes ``python -m stagecoach_workflows`` the same as the command ``stagecoach``; the pipeline image starts it."""

from __future__ import annotations

from stagecoach_workflows.cli.main import app

raise SystemExit(app())
