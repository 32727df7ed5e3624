"""The published filters of the original mixture, on small rows that hit each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach.recipe.source import EmbeddedSource
from stagecoach_pack.collect import SourceCounts, collect
from stagecoach_pack.sources.readers import DataFile
from stagecoach_pack.spool import Spool


def collected(
    folder: Path, rows: list[dict[str, Any]], **options: Any
) -> tuple[list[list[tuple[str, str]]], SourceCounts]:
    """Read rows through a source's whole chain."""
    (folder / "rows.json").write_text(json.dumps(rows))
    data = DataConfig(name="d", sources=(DataSource(name="s", source=EmbeddedSource(), **options),))
    spool = Spool(folder)
    found = collect(data, {"s": [DataFile("rows.json", folder / "rows.json")]}, spool)
    import numpy as np

    talks = [[(m["role"], m["content"]) for m in talk.messages] for talk in spool.conversations(np.arange(len(spool)))]
    spool.close()
    return talks, found.counts[0]


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


U, A = ("human", "u"), ("gpt", "a")


def test_the_seven_sharegpt_filters_in_their_order(tmp_path: Path) -> None:
    rows = [
        talk(U, A, U, A),
        talk(U, A),  # fewer than 4 turns
        talk(A, A, A, A),  # no user turn
        talk(U, U, U, U),  # no assistant turn
        talk(U, A, U, ("gpt", "Cancelled")),
        talk(A, U, A, U),  # begins with the assistant
        talk(U, A, A, U),  # two assistant turns
        talk(U, U, A, U),  # two user turns
    ]
    talks, counts = collected(tmp_path, rows, prepare="sharegpt", min_turns=4)
    assert talks == [[("user", "u"), ("assistant", "a"), ("user", "u"), ("assistant", "a")]]
    assert counts.left_after == {
        "at least 4 turns": 7,
        "has a user turn": 6,
        "has an assistant turn": 5,
        "no turn is 'Cancelled'": 4,
        "first turn is not the assistant's": 3,
        "no two assistant turns in a row": 2,
        "no two user turns in a row": 1,
    }
    assert (counts.rows_read, counts.rows_usable) == (8, 1)


def test_sharegpt_repairs_text_notices_and_bing(tmp_path: Path) -> None:
    rows = [
        talk(
            ("user", "snake\\_case"),
            ("chatgpt", "This chat conversation is shared from [x]"),
            ("bard", "ok"),
            ("bing", "found"),
        )
    ]
    talks, _ = collected(tmp_path, rows, prepare="sharegpt")
    assert talks == [[("user", "snake_case"), ("assistant", "ok"), ("user", "Bing Search Result:\nfound")]]


def test_openorca_keeps_the_chain_of_thought_rows(tmp_path: Path) -> None:
    rows = [
        {"id": f"{kind}.1", "system_prompt": "", "question": "q", "response": "r"} for kind in ("cot", "flan", "t0")
    ]
    talks, counts = collected(tmp_path, rows, prepare="openorca_cot")
    assert talks == [[("system", ""), ("user", "q"), ("assistant", "r")]]
    assert counts.left_after == {"id begins with cot.": 1}


def test_codeact_trajectories(tmp_path: Path) -> None:
    def trajectory(name: str, *steps: tuple[str, str]) -> dict[str, Any]:
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Task:\nx"}]
        for action, observation in steps:
            messages += [{"role": "assistant", "content": action}, {"role": "user", "content": observation}]
        return {
            "id": f"reasoning/{name}/1",
            "conversations": [*messages, {"role": "assistant", "content": "<solution>1</solution>"}],
        }

    good = ("<execute>print(1)</execute>", "1")
    failing = ("<execute>1/0</execute>", "Traceback (most recent call last):\nZeroDivisionError")
    rows = [
        trajectory("hotpotqa", good, failing),
        trajectory("strategyqa", good),
        trajectory("hotpotqa", ("hm", "I don't understand your input.")),
        trajectory("hotpotqa", failing, ("<solution>2</solution>", "wrong")),
    ]
    odd = trajectory("hotpotqa", good)
    rows.append({**odd, "conversations": odd["conversations"][:-1]})
    talks, counts = collected(tmp_path, rows, prepare="codeact")
    assert len(talks) == 1
    assert list(counts.left_after.values()) == [4, 3, 2, 1]
