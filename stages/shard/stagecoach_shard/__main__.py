"""The entry point of the shard stage: ``python -m stagecoach_shard``."""

from __future__ import annotations

from stagecoach.contract import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("shard"))
