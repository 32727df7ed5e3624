"""A file of prompts is refused at the line that is wrong, and answers appear whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, DataError
from stagecoach_workflows.serving.prompt_file import answers_file, read_prompts, write_rows


def test_both_forms_keep_their_other_fields(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hi", "id": 7}\n\n{"messages": [{"role": "user", "content": "Ho"}]}\n')
    asked, told = read_prompts(file)
    assert asked == {"prompt": "Hi", "id": 7, "messages": [{"role": "user", "content": "Hi"}]}
    assert told == {"messages": [{"role": "user", "content": "Ho"}]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "got an empty file"),
        ('{"prompt": "a"}\n{', "line 2: expected one JSON object"),
        ('["a"]', 'line 1: expected {"prompt"'),
        ('{"text": "a"}', "line 1: expected"),
        ('{"prompt": 3}', "line 1: expected"),
        ('{"prompt": "a", "messages": []}', "line 1: expected"),
        ('{"messages": []}', "line 1: expected"),
        ('{"messages": [{"role": "user"}]}', "line 1: expected"),
    ],
)
def test_rows_that_are_no_prompt(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_prompts(file)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="expected UTF-8, got byte 0xff at 2"):
        read_prompts(tmp_path / "bytes")


def test_answers_appear_once_all_are_written(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with answers_file(output) as stream:
        write_rows(stream, [{"answer": "grün"}])
        assert not output.exists()
    assert json.loads(output.read_text()) == {"answer": "grün"}
    with pytest.raises(RuntimeError):
        with answers_file(tmp_path / "broken.jsonl"):
            raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output: cannot write"):
        with answers_file(tmp_path / "none" / "answers.jsonl"):
            pass
