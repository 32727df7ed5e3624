"""The entry point of the train stage: ``python -m stagecoach_train``."""

from __future__ import annotations

from stagecoach.contract import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("train"))
