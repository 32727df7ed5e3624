"""Chat files with something wrong in them, through reading, rendering and labelling: an error or a counted row, always.

Each kind of damage is done to ten files or more: every schema, as JSON lines and as an array. No row may vanish: what was read is
usable, bad with a reason, or the whole source is refused in one sentence.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach.recipe.source import EmbeddedSource
from stagecoach_pack.chat import Renderer
from stagecoach_pack.collect import collect
from stagecoach_pack.labels import Labeller
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources.readers import DataFile
from stagecoach_pack.spool import Spool
from tests.unit.stagecoach_pack.chat_tokenizers import chat_tokenizer

NUM_ROWS = 12
Row = dict[str, Any]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, None]}}}
SCHEMAS: tuple[Callable[[int], Row], ...] = (
    lambda n: {
        "messages": [{"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    },
    lambda n: {"conversations": [{"from": "human", "value": f"u{n}"}, {"from": "gpt", "value": "ä"}], "tools": "[]"},
    lambda n: {"instruction": f"i{n}", "input": "", "output": "o", "history": [["u", "a"]]},
    lambda n: {"prompt": f"p{n}", "completion": "c"},
    lambda n: {"data": [f"u{n}", "a"]},
    lambda n: {"conversation": [{"input": f"i{n}", "output": "o"}]},
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a row."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def replaced(row: Row, draw: random.Random, new: Any) -> Row:
    """Put something else into a random place of a row."""
    copy: Row = json.loads(json.dumps(row))
    *path, last = draw.choice(places(copy))
    inside: Any = copy
    for key in path:
        inside = inside[key]
    inside[last] = new
    return copy


def removed(row: Row, draw: random.Random) -> Row:
    copy: Row = json.loads(json.dumps(row))
    del copy[draw.choice(list(copy))]
    return copy


NESTED = "[" * 50_000 + "]" * 50_000
DEEP: Any = json.loads("[" * 400 + "]" * 400)
OF_ROWS: dict[str, Callable[[Row, random.Random], str]] = {
    "null": lambda row, draw: json.dumps(replaced(row, draw, None)),
    "number": lambda row, draw: json.dumps(replaced(row, draw, 5)),
    "list": lambda row, draw: json.dumps(replaced(row, draw, [1])),
    "object": lambda row, draw: json.dumps(replaced(row, draw, {"a": 1})),
    "true": lambda row, draw: json.dumps(replaced(row, draw, True)),
    "NaN": lambda row, draw: json.dumps(replaced(row, draw, float("nan"))),
    "lone surrogate": lambda row, draw: json.dumps(replaced(row, draw, "\ud800")),
    "huge number": lambda row, draw: json.dumps(replaced(row, draw, "@")).replace('"@"', "9" * 5000),
    "deep": lambda row, draw: json.dumps(replaced(row, draw, DEEP)),
    "deeper than any parser": lambda row, draw: json.dumps(replaced(row, draw, "@")).replace('"@"', NESTED),
    "key twice": lambda row, draw: json.dumps(row)[:-1] + f', "{next(iter(row))}": 1}}',
    "column gone": lambda row, draw: json.dumps(removed(row, draw)),
    "text for a row": lambda row, draw: '"text"',
    "empty object": lambda row, draw: "{}",
    "cut line": lambda row, draw: json.dumps(row)[: draw.randrange(1, len(json.dumps(row)))],
}


def _cut_in(data: bytes, draw: random.Random, new: bytes, *, over: int = 0) -> bytes:
    place = draw.randrange(1, len(data))
    return data[:place] + new + data[place + over :]


OF_FILES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda data, draw: data[: draw.randrange(1, len(data))],
    "flipped bits": lambda data, draw: _cut_in(data, draw, draw.randbytes(1), over=1),
    "invalid UTF-8": lambda data, draw: _cut_in(data, draw, b"\xff\xfe"),
    "NUL bytes": lambda data, draw: _cut_in(data, draw, b"\0" * 20),
    "BOM in the middle": lambda data, draw: _cut_in(data, draw, b"\xef\xbb\xbf"),
    "part gone": lambda data, draw: _cut_in(data, draw, b"", over=draw.randint(1, 60)),
    "line ends": lambda data, draw: data.replace(b"\n", b"\r\n").replace(b" ", b"\n", draw.randint(1, 3)),
    "both forms": lambda data, draw: data + b'[{"a": 1}]\n{"a": 2}',
    "UTF-16": lambda data, draw: data.decode().encode("utf-16-le"),
    "empty": lambda data, draw: b"",
}


def looked_at(folder: Path, name: str, data: bytes) -> tuple[int, int, int] | str:
    """Read, render and label a file; returns rows read, usable and bad, or the sentence of its refusal."""
    (folder / "file").write_bytes(data)
    source = DataSource(name="s", source=EmbeddedSource())
    config = DataConfig(name="d", sources=(source,), on_bad_row="drop", max_bad_share=1.0)
    spool = Spool(folder / "spool")
    try:
        found = collect(config, {"s": [DataFile(name, folder / "file")]}, spool)
        talks = list(spool.conversations(np.arange(len(spool))))
    except DataError as error:
        return str(error)
    finally:
        spool.close()
    tokenizer = chat_tokenizer("smollm2")
    renderer, labeller = Renderer(tokenizer, "assistant"), Labeller(tokenizer)
    for talk in talks:
        (labelled,) = labeller.label([renderer.render(talk)])
        assert not isinstance(labelled, RowProblem)
    counts = found.counts[0]
    return counts.rows_read, counts.rows_usable, sum(counts.bad_rows.values())


def encoded(rows: list[str], *, as_array: bool) -> bytes:
    return ("[" + ",\n".join(rows) + "]" if as_array else "\n".join(rows) + "\n").encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("damage", OF_ROWS)
def test_one_bad_row_is_counted_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    for seed in range(2 * len(SCHEMAS)):
        draw = random.Random(f"{damage} {seed}")
        rows = [json.dumps(SCHEMAS[seed % len(SCHEMAS)](n)) for n in range(NUM_ROWS)]
        rows[NUM_ROWS // 2] = OF_ROWS[damage](SCHEMAS[seed % len(SCHEMAS)](99), draw)
        as_array = seed >= len(SCHEMAS)
        found = looked_at(tmp_path, "a.json", encoded(rows, as_array=as_array))
        if isinstance(found, str):  # nobody can say where a broken item of an array ends
            assert as_array, found
            assert found.startswith("a.json: "), found
        else:
            read, usable, bad = found
            assert (read, usable + bad) == (NUM_ROWS, NUM_ROWS)
            assert usable >= NUM_ROWS - 1


@pytest.mark.parametrize("damage", OF_FILES)
def test_a_damaged_file_is_refused_or_its_bad_rows_are_counted(tmp_path: Path, damage: str) -> None:
    for seed in range(2 * len(SCHEMAS)):
        draw = random.Random(f"{damage} {seed}")
        rows = [json.dumps(SCHEMAS[seed % len(SCHEMAS)](n), ensure_ascii=False) for n in range(NUM_ROWS)]
        data = OF_FILES[damage](encoded(rows, as_array=seed >= len(SCHEMAS)), draw)
        found = looked_at(tmp_path, "a.json", data)
        if isinstance(found, str):
            assert found.startswith(("a.json: ", "data source s: expected usable rows")), found
            assert "\n" not in found
        else:
            read, usable, bad = found
            assert read == usable + bad


@pytest.mark.parametrize("seed", range(2 * len(SCHEMAS)))
def test_a_file_that_is_not_what_its_ending_says_is_refused(tmp_path: Path, seed: int) -> None:
    data = encoded(
        [json.dumps(SCHEMAS[seed % len(SCHEMAS)](n)) for n in range(NUM_ROWS)], as_array=seed >= len(SCHEMAS)
    )
    packed = gzip.compress(data, mtime=0)
    cases = {
        "a.jsonl.gz": (data, packed[: -1 - seed], packed[:12] + bytes([255]) + packed[13:]),
        "a.jsonl.zst": (data, packed),
        "a.parquet": (data, packed, b"PAR1" + data + b"PAR1"),
    }
    for name, contents in cases.items():
        for content in contents:
            found = looked_at(tmp_path, name, content)
            assert isinstance(found, str), (name, found)
            assert found.startswith(f"{name}: expected a "), found
