"""Files that stand in for memory: records come back as they were appended, and a digest is new once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach_pack.scratch import DigestSet, RecordFile, make_room
from stagecoach_pack.write import _mapped_records

RECORD = np.dtype([("a", "<u8"), ("b", "<u4"), ("c", "V16"), ("d", "<u2")])


def test_records_come_back_as_appended_also_while_more_are(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records", RECORD)
    assert (len(file), len(file.records)) == (0, 0)
    for number in range(1, 10_001):
        file.append(number, 2 * number, number.to_bytes(16, "big"), number % 7)
        if number in (1, 5000):
            assert file.records["a"].tolist() == list(range(1, number + 1))
    found = file.records
    file.close()
    assert not list(tmp_path.iterdir())
    assert found["a"].tolist() == list(range(1, 10_001))
    assert (found["b"] == 2 * found["a"]).all()
    assert (found["d"] == found["a"] % 7).all()
    assert bytes(found["c"][-1]) == (10_000).to_bytes(16, "big")


def test_a_digest_is_new_once_however_many_there_are(tmp_path: Path) -> None:
    seen = DigestSet(tmp_path)
    digests = [row.tobytes() for row in np.random.default_rng(0).integers(0, 256, (100_000, 16), np.uint8)]
    assert all(seen.add(digest) for digest in digests)
    assert not any(seen.add(digest) for digest in digests)
    seen.close()
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_an_error_before_a_file_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space"):
        DigestSet(tmp_path)
    with pytest.raises(OSError, match="No space"):
        _mapped_records(tmp_path / "records", 10)


def test_room_is_set_aside(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        make_room(file.fileno(), 1 << 20)
        assert os.fstat(file.fileno()).st_size == 1 << 20
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(1, 40)), max_size=200))
def test_digests_that_begin_alike_are_kept_apart(halves: list[tuple[int, int]]) -> None:
    seen, plain = DigestSet(Path("/tmp")), set[bytes]()
    for high, low in halves:  # few beginnings, so that most digests meet in one place of the table
        digest = high.to_bytes(8, "little") + low.to_bytes(8, "little")
        assert seen.add(digest) == (digest not in plain)
        plain.add(digest)
    seen.close()
