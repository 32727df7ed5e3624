"""Both orders that servers list in come out as one; every case can be checked by hand against the ASCII table."""

from __future__ import annotations

import itertools
import random

import pytest

from stagecoach.storage.base import ObjectInfo, utf8_order
from stagecoach.storage.s3_order import by_bytes


def infos(keys: list[str]) -> list[ObjectInfo]:
    return [ObjectInfo(key, 0, "", 0.0) for key in keys]


def folder_by_folder(keys: list[str]) -> list[str]:
    """As SeaweedFS lists: part by part, a file before what lies below its name."""
    return sorted(keys, key=lambda key: [part.encode() for part in key.split("/")])


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b"])
def test_both_orders_come_out_by_bytes(prefix: str) -> None:
    draw = random.Random(prefix)
    names = ["a", "a-b", "a.b", "a b", "b", "a0", "ab", "a-", "ä", "~"]
    for _ in range(200):
        parts = [draw.choices(names, k=draw.randint(1, 4)) for _ in range(20)]
        keys = sorted({"/".join(each) for each in parts if "/".join(each).startswith(prefix)})
        expected = sorted(keys, key=utf8_order)
        for order in (folder_by_folder(keys), expected):
            assert [info.key for info in by_bytes(infos(order), prefix)] == expected


def test_objects_of_the_listed_folder_come_at_once() -> None:
    listing = itertools.chain(infos(["runs/x/1", "runs/x/2"]), iter(lambda: pytest.fail("asked for more"), None))
    assert next(by_bytes(listing, "runs/x/")).key == "runs/x/1"


def test_only_one_subtree_is_held_back() -> None:
    listing = iter(infos(["runs/a/1", "runs/b/1", "runs/c/1"]))
    assert next(by_bytes(listing, "runs/")).key == "runs/a/1"
    assert [info.key for info in listing] == ["runs/c/1"]
