"""A stop that reaches a single rank stops all of them at the same step, with everything saved."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.faults.test_train_kills import TWO_RANKS, WAIT_SECONDS, Training, ranks_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_stop_with_the_one_that_was_told(rank: int, number: signal.Signals, tmp_path: Path) -> None:
    training = Training(tmp_path, **TWO_RANKS)
    process = training.start()
    training.wait_for(training.has_checkpoint, process)
    os.kill(ranks_of(process)[rank], number)
    assert process.wait(timeout=WAIT_SECONDS) == 75, training.log
    stopped = re.search(r"stopped after step (\d+) of 40 \((.*)\), everything is saved", training.log)
    assert stopped, training.log
    assert stopped[2] == (f"{number.name} arrived" if rank == 0 else "another rank was asked to stop")
    training.finish()
    assert f"attempt 2, from iteration {stopped[1]}" in training.log
