"""Parts of large objects: only what is asked for is fetched, and every block is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach import partial_input
from stagecoach.errors import CorruptObjectError
from stagecoach.outputs import Input, Output, open_input
from stagecoach.partial_input import PartialInput
from tests.counting_store import CountingStore, counting_store

PREFIX = "native/demo-00ff/"
DATA = bytes(range(256)) * 4  # 1,024 bytes: ten blocks of 100 and one of 24


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    return counting_store(monkeypatch, 100)


def written(store: CountingStore, folder: Path) -> Input:
    output = Output(store, PREFIX, folder / "scratch")
    output.write_bytes("large", DATA)
    output.write_bytes("small", b"whole")
    assert output.commit(task="convert", key="00ff", name="demo", output_version=1)
    return open_input(store, PREFIX, folder / "in")


def test_only_the_blocks_that_are_read_are_fetched_and_each_once(store: CountingStore, tmp_path: Path) -> None:
    partial = PartialInput(written(store, tmp_path), tmp_path / "parts")
    path = partial.path("large", [(110, 120), (150, 301)])
    assert sorted(store.ranges) == [(100, 100), (200, 100), (300, 100)]
    content = path.read_bytes()
    assert len(content) == len(DATA)
    assert content[100:400] == DATA[100:400]
    assert not any(content[:100] + content[400:])
    assert partial.path("large", [(1_010, 1_024), (320, 330), (5, 5)]) == path
    assert store.ranges[3:] == [(1_000, 24)]
    assert path.read_bytes()[1_000:] == DATA[1_000:]


def test_a_block_may_take_several_requests(
    store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_input, "_RANGE_BYTES", 40)
    path = PartialInput(written(store, tmp_path), tmp_path / "parts").path("large", [(110, 120), (1_020, 1_024)])
    assert sorted(store.ranges) == [(100, 40), (140, 40), (180, 20), (1_000, 24)]
    assert path.read_bytes()[100:200] + path.read_bytes()[1_000:] == DATA[100:200] + DATA[1_000:]


def test_a_small_object_is_fetched_whole(store: CountingStore, tmp_path: Path) -> None:
    partial = PartialInput(written(store, tmp_path), tmp_path / "parts")
    assert partial.path("small", [(0, 1)]).read_bytes() == b"whole"
    assert store.ranges == []


def test_a_damaged_block_is_refused_if_it_is_read(store: CountingStore, tmp_path: Path) -> None:
    source = written(store, tmp_path)
    key = source.entry("large").path
    store.put(key, DATA[:250] + b"?" + DATA[251:])
    partial = PartialInput(source, tmp_path / "parts")
    assert partial.path("large", [(0, 200)]).read_bytes()[:200] == DATA[:200]
    with pytest.raises(CorruptObjectError, match="bytes 200 to 300 are not those that were recorded"):
        partial.path("large", [(299, 300)])
