"""What a rank is told, and how it reports its end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore

from stagecoach.errors import AcceleratorError, DataError
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.job import Assignment, Job
from stagecoach_train.ranks import Ranks
from stagecoach_train.signals import StopRequest
from stagecoach_train.train_state import CheckpointRef
from stagecoach_train.worker import Place, classify, main, train_rank


def job(folder: Path, **values: object) -> Job:
    given: dict[str, object] = {
        "store_url": f"file://{folder}",
        "trained": "trained/tiny-0123456789abcdef/",
        "config": TrainConfig(steps=3, lr=2e-5, warmup_share=0.1),
        "inputs": {"shards": "shards/tiny-0123456789abcdef/"},
        "scratch": folder,
    }
    return Job(**{**given, **values})  # type: ignore[arg-type]


class TestJob:
    @pytest.mark.parametrize(
        "assignment", [None, Assignment(0, None), Assignment(1, None), Assignment(3, CheckpointRef(152, 2))]
    )
    def test_survives_its_file(self, tmp_path: Path, assignment: Assignment | None) -> None:
        written = job(tmp_path, assignment=assignment, files={"shards": {"shards.json": "/x/shards.json"}})
        written.write(tmp_path / "job.json")
        assert Job.read(tmp_path / "job.json") == written


class TestPlace:
    def test_is_read_from_the_usual_variables(self) -> None:
        settings = Settings.from_environ(
            {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
        )
        place = Place.of(settings, listen_descriptor=7)
        assert place == Place(5, 8, 1, "node-0", 29500, 7, elastic=False)
        assert place.leader == 4


class TestRanks:
    def test_texts_are_heard_once_they_are_said(self) -> None:
        ranks = Ranks(0, 1, HashStore(), timeout_seconds=5)
        ranks.say("greeting", "hello, 世界")
        assert ranks.hear(["greeting"]) == ["hello, 世界"]

    def test_silence_is_an_accelerator_fault(self) -> None:
        with pytest.raises(AcceleratorError, match="rank 0: waited too long for files/0 from its peers"):
            Ranks(0, 1, HashStore(), timeout_seconds=0.05).hear(["files/0"])


class TestReport:
    """Breaks if the launcher could not tell a cause from its consequences."""

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (DataError("row 7 has no role"), 79, "row 7 has no role"),
            (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), 71, "communication between"),
            (RuntimeError("NCCL error: unhandled system error"), 71, "communication between ranks failed: NCCL"),
            (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 70, "a bug in Stagecoach: RuntimeError"),
            (OSError(28, "No space left on device", "/scratch/x"), 69, "no space left on the disk that holds /scratch"),
        ],
    )
    def test_errors_have_their_codes(self, error: BaseException, code: int, words: str) -> None:
        found = classify(error)
        assert found[0] == code
        assert words in found[1]

    def test_a_failed_rank_leaves_a_report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stagecoach_train.worker._end_with_parent", lambda: None)
        failure = tmp_path / "failure.json"
        assert main(["--job", str(tmp_path / "missing.json"), "--failure", str(failure)]) == 70
        report = json.loads(failure.read_text())
        assert report["exit_code"] == 70
        assert "FileNotFoundError" in report["sentence"]

    def test_a_report_that_finds_no_room_is_the_last_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("stagecoach_train.worker._end_with_parent", lambda: None)
        assert main(["--job", str(tmp_path / "missing.json"), "--failure", "/dev/full"]) == 70
        assert "FileNotFoundError" in capsys.readouterr().err.splitlines()[-1]


class TestDeterministic:
    """Breaks if a deterministic training depended on who started its ranks."""

    @pytest.mark.parametrize(("given", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
    def test_cublas_is_told_before_a_gpu_is_touched(
        self, given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "CUBLAS_WORKSPACE_CONFIG"
        monkeypatch.setenv(name, given or "")  # so that it is restored, also where it was not set
        if given is None:
            monkeypatch.delenv(name)
        settings = TrainConfig(steps=3, lr=2e-5, warmup_share=0.1, gpus=1, deterministic=True)
        with pytest.raises(AcceleratorError, match="expected a GPU for local rank 99"):
            train_rank(job(tmp_path, config=settings), Place(local_rank=99), StopRequest(), MemoryStore("m"))
        assert os.environ[name] == expected
