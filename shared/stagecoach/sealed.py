"""Small JSON records that carry a digest of themselves, so that one flipped bit in a record is found, not believed.

Objects are checked against their manifest; nothing stands above manifest, plan and numbered records, so they seal
themselves: ``digest`` is the sha256 of the canonical JSON (sorted keys, no spaces, ASCII) of all other fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stagecoach.errors import CorruptObjectError, StoreUnavailable
from stagecoach.storage.base import ObjectStore

_T = TypeVar("_T")

DIGEST = "digest"


def seal(values: Mapping[str, Any]) -> bytes:
    """Return the record as indented JSON with its digest.

    Args:
        values: Plain JSON values, without a field ``digest``.
    """
    return json.dumps({**values, DIGEST: _digest(values)}, indent=1).encode()


def unseal(data: bytes, address: str) -> dict[str, Any]:
    """Return the fields of a record without its digest; one without a digest, written by hand, is taken as it is.

    Raises:
        CorruptObjectError: It is no JSON object, or its fields are not those that were sealed; names ``address``.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptObjectError(
            f"{address}: expected a JSON record, it is damaged ({type(error).__name__})"
        ) from error
    if not isinstance(values, dict):
        raise CorruptObjectError(f"{address}: expected a JSON object, got {type(values).__name__}")
    expected = values.pop(DIGEST, None)
    if expected is not None and expected != _digest(values):
        raise CorruptObjectError(f"{address}: damaged, its fields are not those that were written")
    return values


def read_record(store: ObjectStore, key: str, parse: Callable[[bytes, str], _T]) -> _T:
    """Return one record, parsed; read a second time before it is called damaged.

    Args:
        store: Where it lies.
        key: Its key.
        parse: Turns its bytes into what is wanted; gets the address too, to name it in errors.

    Raises:
        ObjectMissing: There is none.
        CorruptObjectError: It is damaged in the store.
        StoreUnavailable: The store itself says that it holds more or fewer bytes than it gave.
    """
    address = f"{store.url.rstrip('/')}/{key}"
    try:
        return parse(store.get(key), address)
    except CorruptObjectError:
        data = store.get(key)
    try:
        return parse(data, address)
    except CorruptObjectError as error:
        info = store.head(key)
        if info is not None and info.size_bytes != len(data):
            raise StoreUnavailable(
                store.url, key, f"the store gives {len(data)} of {info.size_bytes} bytes; run again later"
            ) from error
        raise


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
