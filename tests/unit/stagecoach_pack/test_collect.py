"""Reading all sources: what stops it, what is counted, and that the spool gives back what was put in."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach.recipe.source import EmbeddedSource
from stagecoach_pack.collect import collect
from stagecoach_pack.conversation import Conversation, plain_text
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources.readers import DataFile
from stagecoach_pack.spool import Spool

GOOD: dict[str, Any] = {
    "id": "x",
    "messages": [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "a"}],
}


def config(*names: str, **options: Any) -> DataConfig:
    return DataConfig(
        name="d", sources=tuple(DataSource(name=name, source=EmbeddedSource()) for name in names), **options
    )


def file(folder: Path, name: str, *rows: Any) -> DataFile:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return DataFile(name, folder / name)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def test_conversations_come_back_with_their_origin(tmp_path: Path, spool: Spool) -> None:
    files = {
        "s": [file(tmp_path, "a.jsonl", GOOD, GOOD), file(tmp_path, "b.jsonl", GOOD)],
        "t": [file(tmp_path, "c.jsonl", GOOD)],
    }
    collect(config("s", "t"), files, spool)
    assert spool.sources.tolist() == [0, 0, 0, 1]
    assert spool.files.tolist() == [0, 0, 1, 2]
    assert spool.file_names == ["s/a.jsonl", "s/b.jsonl", "t/c.jsonl"]
    assert spool.rows.tolist() == [1, 2, 1, 1]
    assert spool.identities(np.array([3])) == [b"x"]
    assert [talk.messages for talk in spool.conversations(np.array([0, 3]))] == [GOOD["messages"], GOOD["messages"]]


def test_only_later_equals_are_duplicates_whatever_the_source(tmp_path: Path, spool: Spool) -> None:
    other = {"messages": [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "b"}]}
    question, answer = GOOD["messages"]
    weighted = {"messages": [question, {**answer, "weight": 0}]}
    files = {
        "s": [file(tmp_path, "a.jsonl", GOOD, other, GOOD)],
        "t": [file(tmp_path, "b.jsonl", other, weighted)],
    }
    collect(config("s", "t"), files, spool)
    assert spool.duplicates.tolist() == [False, False, True, True, True]


def test_what_is_packed_anyway_is_handed_on_and_the_rest_is_spooled(tmp_path: Path, spool: Spool) -> None:
    sources = (
        DataSource(name="s", source=EmbeddedSource()),
        DataSource(name="t", source=EmbeddedSource(), rows=1),
        DataSource(name="u", source=EmbeddedSource(), weight=0.5),
        DataSource(name="v", source=EmbeddedSource(), weight=1.5),
    )
    talks = [[{"role": "user", "content": name}] for name in "stuv"]
    files = {
        name: [file(tmp_path, f"{name}.jsonl", *[{"messages": talk}] * 2)]
        for name, talk in zip("stuv", talks, strict=True)
    }
    taken: list[tuple[int, int, Any]] = []
    collect(
        DataConfig(name="d", sources=sources),
        files,
        spool,
        take=lambda index, source, talk: taken.append((index, source, talk.messages)),
    )
    assert taken == [(0, 0, talks[0]), (6, 3, talks[3])]
    assert [talk.messages for talk in spool.conversations(np.array([2, 4]))] == [talks[1], talks[2]]


def test_bad_rows_stop_with_the_first_ten_and_the_total(tmp_path: Path, spool: Spool) -> None:
    bad = {"messages": [{"role": "robot", "content": "x"}]}
    with pytest.raises(DataError) as caught:
        collect(config("s"), {"s": [file(tmp_path, "a.jsonl", GOOD, *[bad] * 12, "{")]}, spool)
    lines = str(caught.value).splitlines()
    assert lines[0] == "13 bad rows; correct the data, or set data.on_bad_row to drop:"
    assert lines[1].startswith("  s: a.jsonl: row 2: messages[0].role: expected one of assistant, bard, ")
    assert lines[1].endswith("(add others under `roles`), found 'robot'")
    assert lines[-1] == "  .. and 3 more"
    assert len(lines) == 12


def test_bad_rows_are_dropped_and_counted_by_reason(tmp_path: Path, spool: Spool) -> None:
    rows = [GOOD] * 8 + [{"messages": []}, "nonsense"]
    found = collect(config("s", on_bad_row="drop", max_bad_share=0.2), {"s": [file(tmp_path, "a.jsonl", *rows)]}, spool)
    assert found.counts[0].bad_rows == {"empty conversation": 1, "invalid JSON": 1}
    assert (found.counts[0].rows_read, found.counts[0].rows_usable, len(spool)) == (10, 8, 8)


def test_too_many_bad_rows_are_refused_even_then(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(DataError, match=r"20\.00% of the 5 rows of s, data\.max_bad_share allows 1\.00%"):
        collect(config("s", on_bad_row="drop"), {"s": [file(tmp_path, "a.jsonl", *[GOOD] * 4, "{")]}, spool)


def test_a_lone_surrogate_is_a_bad_row(tmp_path: Path, spool: Spool) -> None:
    row = '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    with pytest.raises(DataError, match="expected text that has a UTF-8 form"):
        collect(config("s"), {"s": [file(tmp_path, "a.jsonl", GOOD, row)]}, spool)


@pytest.mark.parametrize("names", [[], ["README.md"]])
def test_a_source_without_data_files_is_refused(tmp_path: Path, spool: Spool, names: list[str]) -> None:
    files = [file(tmp_path, name, "# card") for name in names]
    with pytest.raises(DataError, match="data source s: expected at least one data file"):
        collect(config("s"), {"s": files}, spool)


def test_a_source_whose_rows_are_all_filtered_is_refused(tmp_path: Path, spool: Spool) -> None:
    data = DataConfig(name="d", sources=(DataSource(name="s", source=EmbeddedSource(), min_turns=9),))
    with pytest.raises(DataError, match="expected usable rows, got none of 1: 0 after 'at least 9 turns'"):
        collect(data, {"s": [file(tmp_path, "a.jsonl", GOOD)]}, spool)


def test_files_that_accompany_the_data_are_listed_not_read(tmp_path: Path, spool: Spool) -> None:
    files = [file(tmp_path, "README.md", "# card"), file(tmp_path, "a.jsonl", GOOD)]
    assert collect(config("s"), {"s": files}, spool).counts[0].ignored_files == ["README.md"]


def test_equal_messages_have_equal_digests_whatever_the_id_and_weights() -> None:
    first = Conversation([{"role": "user", "content": "u"}], None, "1")
    second = Conversation([{"content": "u", "role": "user", "weight": 0}], None, "2")
    other = Conversation([{"role": "user", "content": "u"}], [{"type": "function", "function": {"name": "f"}}])
    digests = [talk.digest().hex() for talk in (first, second, other)]
    assert digests[0] == digests[1] == "75a92d31789aa87e104c323af84e718d"
    assert digests[2] != digests[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text()), min_size=1))
def test_the_hash_is_that_of_sorted_compact_json(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = json.dumps([messages, None], ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    assert Conversation(messages).digest() == hashlib.blake2b(expected, digest_size=16).digest()


@settings(max_examples=1000, deadline=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.characters(exclude_categories=["Cs"]), st.sampled_from("aE\u0301\u3000\x85\u2028\t \ufb01")
        )
    )
)
def test_plain_text_is_casefolded_nfkc_with_single_blanks(text: str) -> None:
    expected = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    assert plain_text(text).decode() == expected


def test_near_copies_are_held_out_together() -> None:
    def side(*turns: str, system: str | None = None) -> int:
        first = [] if system is None else [{"role": "system", "content": system}]
        roles = ("user", "assistant")
        said = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
        return Conversation([*first, *said]).side()

    same = [
        side("Hi  there\n", "Caf\u00e9"),
        side("hi there", "CAFE\u0301"),
        side("Hi there", "caf\u00e9", system="Be kind."),
    ]
    assert len(set(same)) == 1
    assert side("Hi there", "Tea") != same[0]
    assert side("Hi thereCaf\u00e9") != same[0]


def test_nesting_that_templates_could_not_stand_is_a_bad_row(spool: Spool) -> None:
    for levels, fits in ((90, True), (110, False), (900, False)):
        tool = {"type": "function", "function": {"name": "f", "parameters": json.loads("[" * levels + "]" * levels)}}
        talk = Conversation([{"role": "user", "content": "u"}], [tool])
        if fits:
            spool.add(talk, 0, 0, 1)
        else:
            with pytest.raises(RowProblem, match="expected calls and tools of at most 100 levels"):
                spool.add(talk, 0, 0, 1)


@pytest.mark.parametrize("value", [float("nan"), b"bytes", dt.date(2024, 1, 1)])
def test_what_json_has_no_form_for_is_a_bad_row(spool: Spool, value: object) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": value}}}
    with pytest.raises(RowProblem, match="expected calls and tools of JSON values"):
        spool.add(Conversation([{"role": "assistant", "content": "", "tool_calls": [call]}]), 0, 0, 1)
