"""Every kind of file is read; every kind of damage is named, never skipped and never a traceback."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from stagecoach.errors import DataError
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources import readers
from stagecoach_pack.sources.readers import DataFile, is_ignored, read_rows

ROWS: list[dict[str, Any]] = [{"n": index, "text": "Grüße 😀 \u2028 " * 3} for index in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()


def read(folder: Path, name: str, data: bytes) -> list[readers.Row]:
    (folder / "file").write_bytes(data)
    return list(read_rows(DataFile(name, folder / "file")))


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    stream = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), stream)
    return bytes(stream.getvalue())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("a.json", ARRAY),
        ("a.json", LINES),  # many data sets call JSON lines .json
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.json", b"\xef\xbb\xbf \n" + ARRAY + b"\n\n"),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n").removesuffix(b"\r\n")),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.json.gz", gzip.compress(ARRAY[:9], mtime=0) + gzip.compress(ARRAY[9:], mtime=0)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.json.zst", zstandard.compress(ARRAY[:9]) + zstandard.compress(ARRAY[9:])),
        ("dir/A.PARQUET", parquet_bytes(ROWS)),
        ("a.parquet.zst", zstandard.compress(parquet_bytes(ROWS))),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(tmp_path, name, data) == list(enumerate(ROWS, start=1))


def test_row_numbers_are_line_numbers_and_blank_lines_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", b'\n{"a": 1}\n  \n{"a": 2}') == [(2, {"a": 1}), (4, {"a": 2})]


def test_an_array_is_read_with_a_window_smaller_than_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 7)
    assert read(tmp_path, "a.json", ARRAY) == list(enumerate(ROWS, start=1))
    assert read(tmp_path, "a.json", b"[1, 23456789, 3]") == [(1, 1), (2, 23456789), (3, 3)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"not json", "one JSON value"),
        (b'{"a": 1', "one JSON value"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "UTF-8 text, found 'byte 0xff at 7'"),
        (b"1" * 5000, "one JSON value"),  # Python refuses to convert such a number
    ],
)
def test_a_bad_line_is_one_problem_and_the_rest_is_read(tmp_path: Path, line: bytes, expected: str) -> None:
    rows = read(tmp_path, "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert [rows[0], rows[2]] == [(1, {"a": 1}), (3, {"a": 3})]
    assert rows[1][0] == 2
    assert isinstance(rows[1][1], RowProblem)
    assert expected in str(rows[1][1])


def test_a_bad_item_of_an_array_is_one_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.json", b'[{"a": 1}, {"a": NaN}, {"b": 1, "b": 2}, {"a": ' + b"9" * 5000 + b'}, {"a": 4}]')
    assert [type(value) for _, value in rows] == [dict, RowProblem, RowProblem, RowProblem, dict]


def test_a_line_that_is_too_large_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 100)
    rows = read(tmp_path, "a.jsonl", b'{"a": "' + b"x" * 500 + b'"}\n{"a": 2}\n')
    assert str(rows[0][1]) == "row: expected at most 100 bytes, found 'more'"
    assert rows[1] == (2, {"a": 2})


@pytest.mark.parametrize("cut", [b"{", b'{"a": ['])
def test_a_first_line_that_is_cut_spoils_no_line_behind_it(cut: bytes, tmp_path: Path) -> None:
    rows = read(tmp_path, "a.jsonl", cut + b'\n{"a": 2}\n')
    assert isinstance(rows[0][1], RowProblem)
    assert rows[1] == (2, {"a": 2})


def test_a_line_of_50_megabytes_is_a_row_like_any_other(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.jsonl", b'{"a": "' + b"x" * 50_000_000 + b'"}\n{"a": 2}\n')
    assert [number for number, _ in rows] == [1, 2]
    assert isinstance(rows[0][1], dict)
    assert len(rows[0][1]["a"]) == 50_000_000


PARQUET = parquet_bytes(ROWS)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param("a.jsonl", b"", "expected at least one row, got an empty file", id="empty"),
        pytest.param("a.jsonl", b" \n\n", "expected at least one row", id="only blank lines"),
        pytest.param("a.json", b"[]", "expected at least one row", id="empty array"),
        pytest.param("a.jsonl", LINES.decode().encode("utf-16"), "expected UTF-8 text, got UTF-16", id="UTF-16"),
        pytest.param("a.json", ARRAY[:-1], "expected ',' between the items", id="array without its end"),
        pytest.param(
            "a.json", ARRAY[: ARRAY.index(b'"n": 2')], "row 3: expected a JSON value", id="array cut in a row"
        ),
        pytest.param("a.json", b'["a\xc3', "got a file cut inside a character", id="array cut in a character"),
        pytest.param("a.json", b"[1] [2]", "expected the end of the file behind the array", id="two arrays"),
        pytest.param("a.json", b"[1,,2]", "row 2: expected a JSON value", id="empty item"),
        pytest.param("a.json", b"[" * 100_000, "nested too deeply", id="deep nesting"),
        pytest.param("a.json", b'["\xff"]', "expected UTF-8 text, got the byte 0xff", id="invalid UTF-8"),
        pytest.param("a.json", b' {\n "a": 1}', "got a JSON object over several lines", id="indented"),
        pytest.param("a.json", b'{"a": [\n1]}\n', "got a JSON object over several lines", id="wrapped"),
        pytest.param("a.jsonl", b'{\n"a": "' + b"x" * 2**21 + b'"}', "over several lines", id="indented and large"),
        pytest.param("a.jsonl.gz", LINES, "expected a whole gzip file", id="not gzip"),
        pytest.param("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "expected a whole gzip file", id="cut gzip"),
        pytest.param(
            "a.jsonl.gz",
            gzip.compress(LINES, mtime=0)[:20] + b"\0" * 30,
            "expected a whole gzip file",
            id="damaged gzip",
        ),
        pytest.param("a.jsonl.zst", LINES, "expected a whole zstd file", id="not zstd"),
        pytest.param("a.jsonl.zst", zstandard.compress(LINES)[:-3], "expected a whole zstd file", id="cut zstd"),
        pytest.param("a.parquet", PARQUET[:-20], "expected a parquet file", id="cut parquet"),
        pytest.param("a.parquet", LINES, "expected a parquet file", id="not parquet"),
        pytest.param("a.parquet", b"", "expected a parquet file", id="empty parquet"),
        pytest.param("a.csv", b"a,b\n1,2\n", r"expected a file that ends in \.jsonl", id="CSV"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, name, data)
    assert str(caught.value).startswith(name)


def _flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


def _removed(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + data[place + draw.randint(1, 40) :]


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bit": _flipped,
    "removed bytes": _removed,
    "cut": lambda data, draw: data[: draw.randrange(len(data))],
    "zeros at the end": lambda data, draw: data + b"\0" * draw.randint(1, 50),
    "doubled part": lambda data, draw: data[: draw.randrange(len(data))] + data[draw.randrange(len(data)) :],
    "random bytes": lambda data, draw: draw.randbytes(draw.randint(1, 300)),
    "swapped halves": lambda data, draw: data[len(data) // 2 :] + data[: len(data) // 2],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.json", ARRAY),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.parquet", PARQUET),
    ],
)
def test_random_damage_is_a_clear_error_or_bad_rows(tmp_path: Path, damage: str, name: str, data: bytes) -> None:
    for seed in range(10):
        try:
            rows = read(tmp_path, name, DAMAGE[damage](data, random.Random(seed)))
        except DataError as error:
            assert str(error).startswith(name)
        else:
            assert [number for number, _ in rows] == sorted({number for number, _ in rows})


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("README.md", True),
        ("x/LICENSE", True),
        (".gitattributes", True),
        ("data/train.parquet", False),
        ("a.csv", False),
    ],
)
def test_files_that_only_accompany_the_data_are_known(name: str, ignored: bool) -> None:
    assert is_ignored(name) is ignored


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", _zstd)])
@pytest.mark.parametrize("content", [b" ", b"["])
def test_a_bomb_ends_in_one_sentence_and_bounded_memory(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], content: bytes
) -> None:
    """80 MiB of nothing in at most 0.1 MB: more than 500-fold, and read in small bites."""
    path = tmp_path / "x"
    path.write_bytes(compress(content * 2**24) * 5)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"becomes more than 500 times larger|nested too deeply"):
            for _ in read_rows(DataFile(f"chat.jsonl{ending}", path)):
                pass
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    finally:
        tracemalloc.stop()


def test_one_bite_of_zstd_stays_small(tmp_path: Path) -> None:
    """A frame of run-length blocks makes 128 KiB of four bytes; a mebibyte of them at once would be 32 GiB."""
    path = tmp_path / "x"
    path.write_bytes(_zstd(b"\0" * 2**29))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="becomes more than 500 times larger"):
            list(read_rows(DataFile("chat.jsonl.zst", path)))
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    finally:
        tracemalloc.stop()


def test_a_parquet_bomb_is_refused_by_its_own_table_of_contents(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = tmp_path / "x"
    column = pa.array([" " * 2**20] * 100)
    parquet.write_table(pa.table({"text": column}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="becomes more than 500 times larger"):
        list(read_rows(DataFile("chat.parquet", path)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ', "a value is missing at character 7"),
        ('{"a" 1}', "':' is missing at character 6"),
        ('{"a": 1 "b": 2}', "',' or a closing bracket is missing at character 9"),
        ('{"a": "x', "a text begins that does not end at character 7"),
        ("{a: 1}", "a name in double quotes is missing at character 2"),
        ('{"a": 1} x', "something follows the value at character 10"),
        ('{"a": "\\x"}', "a text holds an unknown escape at character 8"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice in one object"),
    ],
)
def test_invalid_json_says_what_is_wrong_and_where_in_the_row(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x"
    path.write_text(f'{{"a": 1}}\n{text}\n')
    _, problem = list(read_rows(DataFile("chat.jsonl", path)))[1]
    assert isinstance(problem, RowProblem)
    assert problem.expected == f"one JSON value ({words})"
    assert problem.found == repr(text)


def test_invalid_json_in_an_array_counts_characters_from_the_row(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('[{"a": 1},\n {"a": ]')
    with pytest.raises(DataError, match=r"row 2: expected a JSON value .* \(a value is missing at character 7\)"):
        list(read_rows(DataFile("chat.json", path)))
