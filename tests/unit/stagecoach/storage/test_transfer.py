"""Retries, parts and files that appear whole, without any store."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.storage.transfer import (
    Part,
    RetryPolicy,
    in_order,
    local_disk_errors,
    new_local_file,
    split_into_parts,
    write_all,
)


def policy(pauses: list[float], **fields: int) -> RetryPolicy:
    """A policy that notes its pauses instead of taking them, and always draws one half."""
    return RetryPolicy(sleep=pauses.append, random=lambda: 0.5, **fields)


def test_pauses_double_up_to_the_longest() -> None:
    pauses: list[float] = []

    def fail() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        policy(pauses, max_tries=10).run(fail, lambda error, failures: True)
    # half of 0.2, 0.4, .. 12.8, then of the longest, 20
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])


def test_success_ends_the_tries() -> None:
    pauses: list[float] = []
    errors = [TimeoutError(), TimeoutError()]

    def work() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert policy(pauses).run(work, lambda error, failures: True) == "done"
    assert len(pauses) == 2


def test_an_error_that_will_not_pass_is_raised_at_once() -> None:
    pauses: list[float] = []

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        policy(pauses).run(fail, lambda error, failures: not isinstance(error, KeyError))
    assert pauses == []


def test_the_number_of_failures_can_decide() -> None:
    pauses: list[float] = []

    def fail() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        policy(pauses).run(fail, lambda error, failures: failures < 3)
    assert len(pauses) == 2


def test_jitter_spreads_from_nothing_to_the_whole_pause() -> None:
    assert RetryPolicy(random=lambda: 0.0).pause_seconds(3) == 0
    assert RetryPolicy(random=lambda: 1.0).pause_seconds(3) == pytest.approx(0.8)
    assert RetryPolicy(random=lambda: 1.0).pause_seconds(10_000) == 20


def test_parts_cover_every_byte_once() -> None:
    assert split_into_parts(10, 4, 100) == [Part(0, 0, 4), Part(1, 4, 4), Part(2, 8, 2)]
    assert split_into_parts(8, 4, 100) == [Part(0, 0, 4), Part(1, 4, 4)]
    assert split_into_parts(0, 4, 100) == []


def test_parts_grow_when_there_would_be_too_many() -> None:
    assert split_into_parts(10, 4, 2) == [Part(0, 0, 5), Part(1, 5, 5)]
    assert len(split_into_parts(10**13, 16 * 2**20, 10_000)) == 10_000


def test_results_come_in_order_whoever_is_first() -> None:
    with ThreadPoolExecutor(4) as executor:
        pauses = [0.05, 0.0, 0.02, 0.0]

        def work(number: int) -> int:
            time.sleep(pauses[number])
            return number

        results = list(in_order(executor, work, [0, 1, 2, 3], 4))
    assert results == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_no_more_than_the_window_is_worked_on() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(8) as executor:
        results = in_order(executor, begun.append, list(range(100)), 3)
        next(results)
        time.sleep(0.05)
        assert len(begun) <= 3
        results.close()  # type: ignore[attr-defined]


def test_the_first_error_ends_the_rest() -> None:
    done = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            raise ValueError("part 1")
        if number == 2:
            done.set()
        return number

    with ThreadPoolExecutor(2) as executor, pytest.raises(ValueError, match="part 1"):
        list(in_order(executor, work, list(range(1000)), 4))
    assert done.is_set()


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with new_local_file(path) as descriptor:
        write_all(descriptor, b"world", 6, path)
        write_all(descriptor, b"hello ", 0, path)
        assert not path.exists()
    assert path.read_bytes() == b"hello world"
    with pytest.raises(RuntimeError), new_local_file(path) as descriptor:
        write_all(descriptor, b"x", 0, path)
        raise RuntimeError
    assert path.read_bytes() == b"hello world"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_a_sentence_to_retry_on(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no space left on its disk \(\d+ MiB free\); free some"):
        with local_disk_errors(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_writing_to_a_full_device_is_that_sentence() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(UnavailableError, match="no space left"):
            write_all(descriptor, b"x", 0, Path("/dev/full"))
    finally:
        os.close(descriptor)


def test_a_folder_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose another scratch folder"), new_local_file(tmp_path / "no" / "file"):
        pass
