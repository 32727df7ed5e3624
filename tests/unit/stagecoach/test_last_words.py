"""The reason of a failure reaches Kubernetes, and nothing else does."""

from __future__ import annotations

from pathlib import Path

from stagecoach.last_words import leave


def test_the_sentence_is_what_kubernetes_reads(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.write_text("older words that are longer than the new ones")
    leave("train.nonsense: unknown field", log)
    assert log.read_text() == "train.nonsense: unknown field"


def test_outside_a_pod_nothing_is_written(tmp_path: Path) -> None:
    leave("a sentence", tmp_path / "termination-log")
    assert list(tmp_path.iterdir()) == []


def test_a_long_sentence_is_cut_to_what_kubernetes_keeps(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    leave("ä" * 5000, log)
    assert log.stat().st_size == 4000


def test_a_place_that_cannot_be_written_does_not_hide_the_failure(tmp_path: Path) -> None:
    leave("a sentence", tmp_path)
