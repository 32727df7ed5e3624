"""The entry point of the pack stage: ``python -m stagecoach_pack``."""

from __future__ import annotations

from stagecoach.contract import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("pack"))
