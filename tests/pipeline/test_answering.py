"""``stagecoach chat`` and ``generate`` on a finished run's export: an answer comes in pieces, a file of prompts in its order."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from stagecoach_workflows.cli.main import app
from tests.micro_run import RUN, MicroWork

QUESTION = "Who are you?"
NUM_TOKENS = 12


class Pieces(io.StringIO):
    """Standard output that remembers what was written at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        written = super().write(text)  # raises for bytes, with which libraries try what a stream takes
        self.pieces.append(text)
        return written


@pytest.fixture
def export(micro: MicroWork) -> str:
    """The address of the export."""
    return str(micro.folder / "store" / micro.plan(RUN).task("export").output)


def answers(export: str, tmp_path: Path, *rows: dict[str, object]) -> list[dict[str, object]]:
    """What ``generate`` makes of rows."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert app(["generate", export, str(prompts), "--output", str(output), "--max-tokens", str(NUM_TOKENS)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_prompt_file_comes_back_in_its_order_with_all_its_fields(export: str, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    first, second = answers(export, tmp_path, {"prompt": QUESTION, "id": 7}, {"messages": messages})
    assert (first["id"], first["prompt"]) == (7, QUESTION)
    assert second["messages"] == messages
    for row in (first, second):
        assert isinstance(row["answer"], str)
        assert row["stopped"] or row["num_tokens"] == NUM_TOKENS


def test_chat_says_the_same_word_by_word(export: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = answers(export, tmp_path, {"prompt": QUESTION})
    written = Pieces()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\n{QUESTION}\n"))
    assert app(["chat", export, "--max-tokens", str(NUM_TOKENS)]) == 0
    text = str(row["answer"])
    assert written.getvalue().count(text) == 2, "after an empty line the conversation is a new one"
    assert "(a new conversation)" in written.getvalue()
    assert ("(cut after 12 tokens)" in written.getvalue()) == (not row["stopped"])
    assert not any(text in piece for piece in written.pieces), "the answer came at once, not as it was made"


def test_prompts_are_checked_before_a_model_is_loaded(
    export: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecoach_workflows.serving.local_model.LocalModel.__init__", None)
    (tmp_path / "prompts.jsonl").write_text('{"text": "Hi"}\n')
    assert app(["generate", export, str(tmp_path / "prompts.jsonl")]) == 79
    assert "line 1: expected" in capsys.readouterr().err
    assert app(["generate", export, str(tmp_path / "none.jsonl")]) == 78
    assert "No such file" in capsys.readouterr().err
