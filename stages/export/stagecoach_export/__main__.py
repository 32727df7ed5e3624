"""The entry point of the export stage: ``python -m stagecoach_export``."""

from __future__ import annotations

from stagecoach.contract import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("export"))
