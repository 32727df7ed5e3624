"""The entry point of the convert stage: ``python -m stagecoach_convert``."""

from __future__ import annotations

from stagecoach.contract import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("convert"))
