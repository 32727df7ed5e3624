"""Chooses the types in which parquet columns become Python values, so that a column nobody asks for can spoil no row.

Dates, times and time zones stay the numbers that they are stored as: Python knows fewer years than parquet, and an
image may know no time zones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from stagecoach.errors import DataError


def readable_schema(schema: Any, file_name: str) -> Any:
    """Return a ``pyarrow.Schema`` to which batches of ``schema`` can be cast before they become Python values.

    Raises:
        DataError: Two columns, or two fields of one struct, have one name; one of them would be lost.
    """
    import pyarrow as pa

    return pa.schema(_readable_fields(schema, file_name))


def _readable_fields(fields: Iterable[Any], file_name: str) -> list[Any]:
    fields = list(fields)
    twice = [name for name, count in Counter(field.name for field in fields).items() if count > 1]
    if twice:
        raise DataError(
            f"{file_name}: expected columns and fields with different names, got {twice[0]!a} more than once;"
            " rename one"
        )
    return [field.with_type(_readable_type(field.type, file_name)) for field in fields]


def _readable_type(kind: Any, file_name: str) -> Any:
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.int8()  # holds the same nulls; pyarrow casts no null to null inside a list
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct(_readable_fields(kind, file_name))
    if pa.types.is_map(kind):
        return pa.map_(_readable_type(kind.key_type, file_name), _readable_type(kind.item_type, file_name))
    if pa.types.is_large_list(kind):
        return pa.large_list(*_readable_fields([kind.value_field], file_name))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(*_readable_fields([kind.value_field], file_name), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(*_readable_fields([kind.value_field], file_name))
    return kind
