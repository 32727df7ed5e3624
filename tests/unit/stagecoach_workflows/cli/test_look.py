"""``stagecoach preview`` and ``data-stats``, each as a user types it, with the stages as subprocesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagecoach_workflows.cli.main import app

REAL = Path(__file__).parents[5] / "shared" / "data" / "chat"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("work"))


def test_preview_shows_the_first_conversations(work: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["preview", "micro", "--rows", "2", "--work", work]) == 0
    shown = capfd.readouterr().out
    assert shown.count("trained\n") == 2
    assert "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n" in shown


def test_preview_shows_ids_on_request_and_downloads_nothing_twice(work: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["preview", "micro", "--rows", "1", "--ids", "--work", work]) == 0
    found = capfd.readouterr()
    assert "<s>\u00b71 <|im_start|>\u00b7" in found.out
    assert app(["preview", "micro", "--rows", "1", "--work", work]) == 0
    assert "download" not in capfd.readouterr().err


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/chat")
@pytest.mark.parametrize(
    ("name", "words"),
    [("glaive_toolcall_en_demo.json", "<tool_call>\n{"), ("alpaca_en_demo.json", "<|im_start|>assistant\n")],
)
def test_real_files_are_checked_and_shown(name: str, words: str, work: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = f"data={{name: real, sources: [{{name: real, source: {{kind: directory, path: {REAL / name}}}}}]}}"
    assert app(["check", "micro", "--work", work, "--set", source]) == 0
    assert "sources: 1 files" in capfd.readouterr().out
    assert app(["preview", "micro", "--rows", "20", "--work", work, "--set", source]) == 0
    shown = capfd.readouterr().out
    assert [f"real/{name}: row {row}: " in shown for row in range(1, 21)] == [True] * 20
    assert words in shown
    assert " 0 trained" not in shown


def test_statistics_count_files_and_folders(work: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    (tmp_path / "chat").mkdir()
    for name in ("a.jsonl", "chat/b.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "chat" / "notes.txt").write_text("no data", encoding="utf-8")
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "chat")]
    assert app(["data-stats", *names, "--recipe", "micro", "--work", work]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("│")]
    assert [(line[1], line[3]) for line in lines] == [("a.jsonl", "1"), ("chat/b.jsonl", "1"), ("all", "2")]


def test_the_stages_exit_code_and_sentence_reach_the_user(
    work: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app(["data-stats", str(tmp_path / "nothing"), "--recipe", "micro", "--work", work]) == 66
    assert "nothing: expected a chat file, or a folder with some" in capfd.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{}", encoding="utf-8")
    assert app(["data-stats", str(tmp_path / "bad.jsonl"), "--recipe", "micro", "--work", work]) == 79
    assert "bad.jsonl: row 1: expected one of the schemas" in capfd.readouterr().err
