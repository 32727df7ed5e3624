"""Puts listings of servers that walk folders (SeaweedFS) into the order that S3 promises, that of the keys' bytes.

Such a server lists what is below ``a/`` right after ``a``. In the order of bytes ``a-b`` comes before ``a/c``, as ``-``
is smaller than ``/``:

    folder by folder   a   a/c   a/d   a-b   a.b   a0
    by bytes           a   a-b   a.b   a/c   a/d   a0
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from stagecoach.storage.base import ObjectInfo, utf8_order

_SMALLER_THAN_SLASH = re.compile(r"[ -.]")


def by_bytes(infos: Iterable[ObjectInfo], prefix: str) -> Iterator[ObjectInfo]:
    """Yield a listing of ``prefix`` in the order of bytes, whichever of the two orders it comes in.

    Holds back one subtree of the listed folder at a time, until the listing has come past all that could precede it.
    """
    start = prefix.rfind("/") + 1
    held: list[ObjectInfo] = []
    held_name = ""
    for info in infos:
        name, slash, _ = info.key[start:].partition("/")
        may_precede_held = name.startswith(held_name) and _SMALLER_THAN_SLASH.match(name, len(held_name))
        if held and name != held_name and not may_precede_held:
            yield from _sorted(held)
            held = []
        if held or slash:
            if not held:
                held_name = name
            held.append(info)
        else:
            yield info
    yield from _sorted(held)


def _sorted(infos: list[ObjectInfo]) -> list[ObjectInfo]:
    return sorted(infos, key=lambda info: utf8_order(info.key))
