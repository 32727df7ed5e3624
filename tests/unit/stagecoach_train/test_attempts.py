"""Numbered attempts: a retry takes over at once, another run waits, three fruitless ones are enough."""

from __future__ import annotations

import json
import threading
import time

import pytest

from stagecoach.errors import InterruptedWithProgress, NoProgressError
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.attempts import Fence, Heartbeat, read_attempts, take_attempt
from stagecoach_train.liveness import own_name
from stagecoach_train.train_state import CheckpointRef

TRAINED = "trained/tiny-0123456789abcdef/"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("attempts")


def take(store: MemoryStore, run_id: str, *saved: CheckpointRef, patience: float = 0.3) -> int | None:
    return take_attempt(
        store, TRAINED, run_id, lambda: saved, lambda: None, patience_seconds=patience, poll_seconds=0.02
    )


def beat(store: MemoryStore, attempt: int, state: str, number: int = 1) -> None:
    content = {"attempt": attempt, "beat": number, "state": state}
    store.put(f"{TRAINED}heartbeat-{attempt:04d}.json", json.dumps(content).encode())


class TestTaking:
    """Breaks if two attempts could get one number, or a retry had to wait."""

    def test_numbers_count_up_and_record_where_they_began(self, store: MemoryStore) -> None:
        assert [take(store, "run-a"), take(store, "run-a", CheckpointRef(5, 1))] == [1, 2]
        assert [(r.run_id, r.newest_iteration) for r in read_attempts(store, TRAINED).values()] == [
            ("run-a", 0),
            ("run-a", 5),
        ]

    def test_the_same_run_takes_over_at_once_from_one_that_looks_alive(self, store: MemoryStore) -> None:
        take(store, "run-a")
        beat(store, 1, "running")
        started = time.monotonic()
        assert take(store, "run-a", patience=60) == 2
        assert time.monotonic() - started < 20

    def test_another_run_waits_until_the_heartbeat_stands_still(self, store: MemoryStore) -> None:
        take(store, "run-a")
        over = threading.Event()

        def live() -> None:
            for number in range(30):
                beat(store, 1, "running", number)
                time.sleep(0.02)
            over.set()

        thread = threading.Thread(target=live)
        thread.start()
        assert take(store, "run-b") == 2
        assert over.is_set()
        thread.join()

    @pytest.mark.parametrize("state", ["interrupted", "failed"])
    def test_another_run_goes_on_at_once_where_the_last_attempt_has_ended(self, store: MemoryStore, state: str) -> None:
        take(store, "run-a")
        beat(store, 1, state)
        started = time.monotonic()
        assert take(store, "run-b", patience=60) == 2
        assert time.monotonic() - started < 20

    def test_another_run_does_not_wait_for_a_process_of_this_machine_that_is_gone(
        self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        boot, namespace, _, started = own_name().split("/")
        with monkeypatch.context() as patched:
            patched.setattr("stagecoach_train.attempts.own_name", lambda: f"{boot}/{namespace}/999999999/{started}")
            take(store, "run-a")
        beat(store, 1, "running")
        started_seconds = time.monotonic()
        assert take(store, "run-b", patience=60) == 2
        assert time.monotonic() - started_seconds < 20

    def test_another_run_that_finds_the_work_done_takes_nothing(self, store: MemoryStore) -> None:
        take(store, "run-a")
        beat(store, 1, "running")
        store.put_if_absent(TRAINED + "manifest.json", b"{}")
        assert take(store, "run-b") is None
        assert list(read_attempts(store, TRAINED)) == [1]

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"run_id": "a"}', b"\xff"])
    def test_a_damaged_record_is_one_of_an_unknown_run(self, store: MemoryStore, damage: bytes) -> None:
        assert take(store, "a") == 1
        store.put(TRAINED + "attempts/0001.json", damage)
        assert take(store, "a", patience=0.05) == 2

    def test_a_waiting_run_can_be_stopped(self, store: MemoryStore) -> None:
        take(store, "run-a")
        beat(store, 1, "running")

        def stop() -> None:
            raise InterruptedWithProgress("stopped")

        with pytest.raises(InterruptedWithProgress):
            take_attempt(store, TRAINED, "run-b", lambda: (), stop, patience_seconds=60)


class TestProgress:
    """Breaks if a training that crashes at the same place is tried for ever."""

    def test_the_fourth_attempt_without_progress_is_refused(self, store: MemoryStore) -> None:
        take(store, "run-a")
        saved = CheckpointRef(5, 1)
        for _ in range(3):
            take(store, "run-a", saved)
        with pytest.raises(
            NoProgressError, match="3 attempts of run run-a ended without a checkpoint beyond iteration 5"
        ):
            take(store, "run-a", saved)

    def test_progress_starts_the_count_again(self, store: MemoryStore) -> None:
        for number, saved in enumerate([(), (), (), (5, 3), (5, 3), (5, 3), (6, 6)], 1):
            assert take(store, "run-a", *([CheckpointRef(*saved)] if saved else [])) == number

    def test_progress_below_a_damaged_checkpoint_counts(self, store: MemoryStore) -> None:
        """The newest checkpoint stays the damaged one, until the training has come as far again."""
        saved = [CheckpointRef(6, 1), CheckpointRef(9, 1)]
        for number in range(1, 6):
            assert take(store, "run-a", *saved) == number
            beat(store, number, "failed")
            saved = [*saved, CheckpointRef(6 + number, number)]
        assert take(store, "run-a", *saved) == 6

    def test_stops_from_outside_do_not_count(self, store: MemoryStore) -> None:
        for number in range(1, 6):
            assert take(store, "run-a") == number
            beat(store, number, "interrupted")

    def test_a_new_run_may_try_again(self, store: MemoryStore) -> None:
        for number in range(1, 4):
            take(store, "run-a")
            beat(store, number, "failed")
        assert take(store, "run-b") == 4


class TestFenceAndHeartbeat:
    def test_a_higher_attempt_stops_a_lower_one(self, store: MemoryStore) -> None:
        take(store, "run-a")
        Fence(store, TRAINED, 1).check()
        take(store, "run-a")
        with pytest.raises(InterruptedWithProgress, match="attempt 2 has taken over from attempt 1"):
            Fence(store, TRAINED, 1).check()

    def test_the_heartbeat_changes_notices_the_fence_once_and_says_how_it_ended(self, store: MemoryStore) -> None:
        take(store, "run-a")
        fenced: list[str] = []
        heart = Heartbeat(store, TRAINED, 1, fenced.append, beat_seconds=0.02)
        heart.start()
        key = TRAINED + "heartbeat-0001.json"
        first = store.get(key)
        time.sleep(0.1)
        assert store.get(key) != first
        take(store, "run-a")
        time.sleep(0.1)
        heart.end("interrupted")
        assert json.loads(store.get(key))["state"] == "interrupted"
        assert fenced == ["train: attempt 2 has taken over from attempt 1, which stops here"]

    def test_a_beat_that_arrives_late_is_not_the_last_word(self) -> None:
        """It would look alive to other runs, and like one more attempt without progress to its own."""
        arriving = threading.Event()

        class Slow(MemoryStore):
            def put(self, key: str, data: bytes, *, content_type: str = "") -> None:
                if b'"beat": 2' in data and not arriving.wait(20):
                    raise AssertionError("nobody lets the beat arrive")
                super().put(key, data)

        store = Slow("slow")
        heart = Heartbeat(store, TRAINED, 1, lambda reason: None, beat_seconds=0.05)
        heart.start()
        limit_seconds = time.monotonic() + 5
        while heart._beats < 2:
            assert time.monotonic() < limit_seconds
            time.sleep(0.01)
        heart.end("interrupted", wait_seconds=0.05)
        key = TRAINED + "heartbeat-0001.json"
        assert json.loads(store.get(key))["state"] == "interrupted"
        arriving.set()
        heart._thread.join(timeout=5)
        assert json.loads(store.get(key))["state"] == "interrupted"
        heart.end("failed")  # the first word stays
        assert json.loads(store.get(key))["state"] == "interrupted"
