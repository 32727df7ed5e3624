"""Records: numbered, never overwritten, also by two writers at once."""

from concurrent.futures import ThreadPoolExecutor

from stagecoach.records import last_number, read_numbered, write_numbered
from stagecoach.storage.memory import MemoryStore


def test_numbers_go_up_from_one() -> None:
    store = MemoryStore("m")
    assert [write_numbered(store, "runs/r/pack/", {"n": n}) for n in range(3)] == [1, 2, 3]
    assert read_numbered(store, "runs/r/pack/") == {1: {"n": 0}, 2: {"n": 1}, 3: {"n": 2}}


def test_without_records_the_last_number_is_zero() -> None:
    assert last_number(MemoryStore("m"), "runs/r/pack/") == 0


def test_two_writers_get_different_numbers() -> None:
    store = MemoryStore("m")
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda n: write_numbered(store, "r/", {"n": n}), range(40)))
    assert sorted(numbers) == list(range(1, 41))


def test_other_files_under_the_prefix_are_left_alone() -> None:
    store = MemoryStore("m")
    store.put("r/notes.txt", b"x")
    store.put("r/x.json", b"{}")
    assert last_number(store, "r/") == 0
