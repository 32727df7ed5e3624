"""Columns that Python cannot hold, or that share a name: read as what they are stored as, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from stagecoach.errors import DataError
from stagecoach_pack.sources.readers import DataFile, read_rows

TEXTS = pa.array([["u", "a"]] * 2)


def rows(folder: Path, table: Any) -> list[Any]:
    file = folder / "a.parquet"
    parquet.write_table(table, file)
    return [value for _, value in read_rows(DataFile("a.parquet", file))]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62] * 2, pa.timestamp("us")),
        pa.array([1] * 2, pa.timestamp("us", tz="Nowhere/City")),
        pa.array([1] * 2, pa.timestamp("ns")),
        pa.array([2**30] * 2, pa.date32()),
        pa.array([1] * 2, pa.time64("ns")),
        pa.array([2**62] * 2, pa.duration("s")),
    ],
    ids=lambda column: str(column.type),
)
def test_times_are_the_numbers_that_are_stored(column: Any, tmp_path: Path) -> None:
    table = pa.table({"data": TEXTS, "when": column})
    number = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())[0].as_py()
    assert rows(tmp_path, table) == [{"data": ["u", "a"], "when": number}] * 2


def test_times_inside_messages_are_numbers_too(tmp_path: Path) -> None:
    message = pa.struct([("role", pa.string()), ("at", pa.timestamp("us"))])
    for kind in (pa.list_(message), pa.large_list(message), pa.list_(message, 1)):
        table = pa.table({"messages": pa.array([[{"role": "user", "at": 2**62}]], kind)})
        assert rows(tmp_path, table) == [{"messages": [{"role": "user", "at": 2**62}]}]


def test_a_field_that_is_null_everywhere_is_null(tmp_path: Path) -> None:
    """Of messages without calls ``datasets`` and pandas make a column of the type null."""
    message = {"role": "user", "content": "u", "tool_calls": None, "more": {"x": None}, "list": [None]}
    found = rows(tmp_path, pa.Table.from_pylist([{"messages": [message] * 2, "id": None}] * 3))
    assert found == [{"messages": [message] * 2, "id": None}] * 3


def test_a_bit_that_flipped_is_found_where_the_file_has_checksums(tmp_path: Path) -> None:
    """The page is stored as it is, so that the text still decodes."""
    file, texts = tmp_path / "a.parquet", [f"the answer number {number}" for number in range(50)]
    table = pa.table({"data": pa.array([["u", text] for text in texts])})
    parquet.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[data.index(b"answer number 7")] ^= 2
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: expected a parquet file, .*; download it again"):
        list(read_rows(DataFile("a.parquet", file)))


def test_a_map_is_an_object(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.timestamp("ms"))
    assert rows(tmp_path, pa.table({"x": pa.array([[("a", 2**40)]], kind)})) == [{"x": {"a": 2**40}}]
    with pytest.raises(DataError, match=r"a\.parquet: expected a parquet file, got one that fails behind row 0 .*'a'"):
        rows(tmp_path, pa.table({"x": pa.array([[("a", 1), ("a", 2)]], kind)}))


def test_two_columns_or_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    """One of them would be lost."""
    columns = pa.Table.from_arrays([TEXTS, pa.array([[], []], TEXTS.type)], names=["data", "data"])
    fields = pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["data", "data"])
    for table in (columns, pa.table({"a": fields})):
        with pytest.raises(
            DataError, match=r"a\.parquet: expected columns and fields with different names, got 'data'"
        ):
            rows(tmp_path, table)
