"""The metrics stream: chunks that are never changed, and the highest attempt's word for each step."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stagecoach.errors import StoreUnavailable
from stagecoach.metrics_file import read_metrics
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.metrics import CurveSink, MetricsStream, scalars
from tests.faulty_store import Fault, FaultyStore

TRAINED = "trained/tiny-0123456789abcdef/"


def write(store: MemoryStore, attempt: int, first: int, last: int) -> None:
    stream = MetricsStream(store, TRAINED, attempt)
    stream.write("start", first - 1, attempt=attempt)
    for step in range(first, last + 1):
        stream.write("step", step, loss=attempt + step / 10)
    stream.close()


def test_chunks_are_numbered_and_hold_one_record_a_line() -> None:
    store = MemoryStore("metrics")
    stream = MetricsStream(store, TRAINED, 1)
    stream.write("step", 1, loss=2.5)
    stream.flush()
    stream.flush()  # nothing new: no chunk
    stream.write("step", 2, loss=2.25)
    stream.close()
    keys = [info.key for info in store.list(TRAINED)]
    assert keys == [f"{TRAINED}metrics/attempt-0001-00000{n}.jsonl" for n in (1, 2)]
    record = json.loads(store.get(keys[1]))
    assert (record["kind"], record["step"], record["loss"]) == ("step", 2, 2.25)


def test_what_comes_while_a_chunk_is_stored_waits_for_the_next() -> None:
    """A training that writes faster than the store takes would hold up a commit for ever."""

    class Slow(MemoryStore):
        stream: MetricsStream

        def put_if_absent(self, key: str, data: bytes, *, content_type: str = "") -> bool:
            assert self.stream._chunk < 5, "flush does not end"
            self.stream.write("step", 2)
            return super().put_if_absent(key, data)

    store = Slow("slow")
    store.stream = stream = MetricsStream(store, TRAINED, 1)
    stream.write("step", 1)
    stream.flush()
    assert [record["step"] for record in read_metrics(store, TRAINED)] == [1]


def test_a_later_attempt_replaces_the_steps_that_it_does_again() -> None:
    store = MemoryStore("metrics")
    write(store, 1, 1, 6)
    write(store, 2, 4, 5)  # resumed after step 3
    write(store, 3, 6, 7)
    steps = [(r["step"], round(r["loss"], 1)) for r in read_metrics(store, TRAINED) if r["kind"] == "step"]
    assert steps == [(1, 1.1), (2, 1.2), (3, 1.3), (4, 2.4), (5, 2.5), (6, 3.6), (7, 3.7)]


def test_what_could_not_be_stored_is_stored_later() -> None:
    class Away(MemoryStore):
        away = True

        def put_if_absent(self, key: str, data: bytes, *, content_type: str = "") -> bool:
            if self.away:
                raise StoreUnavailable(self.url, key, "does not answer")
            return super().put_if_absent(key, data)

    store = Away("away")
    stream = MetricsStream(store, TRAINED, 1)
    stream.write("step", 1, loss=1.0)
    with pytest.raises(StoreUnavailable):
        stream.flush()
    store.away = False
    stream.close()
    assert [record["step"] for record in read_metrics(store, TRAINED)] == [1]


def test_a_chunk_whose_answer_was_lost_is_not_counted_for_more_than_it_holds() -> None:
    inner = MemoryStore("metrics")
    stream = MetricsStream(FaultyStore(inner, [Fault(when=lambda call: call.number == 1, after=True)]), TRAINED, 1)
    stream.write("step", 1, loss=2.5)
    with pytest.raises(StoreUnavailable):
        stream.flush()  # it is there, but nobody heard of it
    stream.write("step", 2, loss=2.25)
    stream.close()
    stored = b"".join(inner.get(info.key) for info in inner.list(TRAINED))
    assert [json.loads(line)["step"] for line in stored.splitlines()] == [1, 2]


def test_curves_get_every_plain_number() -> None:
    record = {"kind": "step", "step": 3, "unix_seconds": 1.0, "loss": 2.0, "skipped": True, "mfu": None, "s": {"a": 1}}
    assert list(scalars(record)) == [("step/loss", 2.0), ("step/s/a", 1.0)]
    points: list[Any] = []
    sink = CurveSink(lambda *point: points.append(point), lambda: points.append("closed"))
    sink.write(record)
    sink.close()
    assert points == [("step/loss", 2.0, 3), ("step/s/a", 1.0, 3), "closed"]


def test_a_sink_that_fails_does_not_end_the_training(caplog: pytest.LogCaptureFixture) -> None:
    def add(name: str, value: float, step: int) -> None:
        raise OSError("the disk of the curves is full")

    points: list[Any] = []
    sinks = CurveSink(add, lambda: None), CurveSink(lambda *point: points.append(point), lambda: None)
    store = MemoryStore("metrics")
    stream = MetricsStream(store, TRAINED, 1, sinks)
    for step in (1, 2):
        stream.write("step", step, loss=1.0)
    stream.close()
    assert [record["step"] for record in read_metrics(store, TRAINED)] == [1, 2]
    assert points == [("step/loss", 1.0, 1), ("step/loss", 1.0, 2)]
    assert caplog.text.count("the disk of the curves is full") == 1


def test_a_second_end_does_nothing() -> None:
    """A fenced attempt ends its metrics, and once more when it leaves."""
    ends: list[str] = []
    sink = CurveSink(lambda name, value, step: None, lambda: ends.append("closed"))
    stream = MetricsStream(MemoryStore("metrics"), TRAINED, 1, (sink,))
    stream.close()
    stream.close()
    assert ends == ["closed"]
