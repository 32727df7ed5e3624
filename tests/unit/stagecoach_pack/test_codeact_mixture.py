"""The original mixture out of its raw sets: the shipped recipe's sources, on small files that hit every filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from stagecoach.recipe.data import DataConfig
from stagecoach_pack.collect import Collected, collect
from stagecoach_pack.mixing import select
from stagecoach_pack.sources.readers import DataFile
from stagecoach_pack.spool import Spool
from stagecoach_workflows.recipes_shipped import load_recipe
from tests.unit.stagecoach_pack.packing_runs import json_lines

SAMPLED = {"openorca": 40, "sharegpt": 7}
"""Smaller samples than the recipe's 50,000 and 10,000, for files of a hundred rows."""

Row = dict[str, Any]


def sharegpt(name: str, *turns: str) -> Row:
    """Return a row whose turns are spelled ``h:text`` and ``g:text``; openchat calls them ``items``."""
    said = [{"from": {"h": "human", "g": "gpt"}[turn[0]], "value": turn[2:]} for turn in turns]
    return {"id": name, "conversations": said}


def small_files() -> dict[str, list[Row]]:
    """Return rows for each source of the recipe."""
    plain = {"role": "user", "content": "Task:\nadd"}
    orca = [
        {"id": f"{kind}.{n}", "system_prompt": "", "question": f"q{n}", "response": f"r{n}"}
        for n in range(100)
        for kind in ("cot", "flan")
    ]
    good = [sharegpt(f"s{n}", "h:a", f"g:b{n}", "h:c", "g:d") for n in range(20)]
    bad = [
        sharegpt("short", "h:a", "g:This chat conversation is shared from [x]", "h:b", "g:c"),
        sharegpt("no user", "g:a", "g:b", "g:c", "g:d"),
        sharegpt("no assistant", "h:a", "h:b", "h:c", "h:d"),
        sharegpt("cancelled", "h:a", "g:Cancelled", "h:b", "g:c"),
        sharegpt("assistant first", "g:a", "h:b", "g:c", "h:d"),
        sharegpt("two answers", "h:a", "g:b", "g:c", "h:d"),
        sharegpt("two questions", "h:a", "g:b", "h:c", "h:d"),
    ]
    gpt4 = [{"items": row["conversations"]} for row in good[:5]]
    pairs = [{"source": "x", "conversation": [{"input": f"i{n}", "output": f"o{n}"}]} for n in range(4)]
    return {
        "codeact": [
            {"id": f"codeact/{n}", "conversations": [plain, {"role": "assistant", "content": f"{n}"}]} for n in range(3)
        ],
        "openorca": orca,
        "sharegpt": [*bad, *good],
        "sharegpt-gpt4": gpt4,
        "camel": pairs[:1],
        "dove": pairs[1:3],
        "lesswrong": pairs[3:],
    }


def mixture() -> DataConfig:
    """Return the data section of the shipped recipe with smaller samples."""
    data = load_recipe("codeact-mixture").data
    smaller = [source.model_copy(update={"rows": SAMPLED.get(source.name)}) for source in data.sources]
    return data.model_copy(update={"sources": tuple(smaller)})


def read(folder: Path) -> tuple[Collected, Spool]:
    files: dict[str, list[DataFile]] = {}
    for name, rows in small_files().items():
        (folder / f"{name}.jsonl").write_bytes(json_lines(*rows))
        files[name] = [DataFile(f"{name}.jsonl", folder / f"{name}.jsonl")]
    spool = Spool(folder / "spool")
    return collect(mixture(), files, spool), spool


def test_rows_after_each_filter(tmp_path: Path) -> None:
    found, spool = read(tmp_path)
    spool.close()
    table = {
        source.name: [counts.rows_read, *counts.left_after.values()]
        for source, counts in zip(mixture().sources, found.counts, strict=True)
    }
    assert table == {
        "codeact": [3],
        "openorca": [200, 100],
        "sharegpt": [27, 26, 25, 24, 23, 22, 21, 20],
        "sharegpt-gpt4": [5] * 8,
        "camel": [1],
        "dove": [2],
        "lesswrong": [1],
    }
    assert all(not counts.bad_rows for counts in found.counts)


def test_samples_are_those_of_pandas(tmp_path: Path) -> None:
    _, spool = read(tmp_path)
    data, pack = mixture(), load_recipe("codeact-mixture").pack
    duplicate = spool.duplicates & data.remove_duplicates
    chosen = select(data.sources, spool.sources, spool.digests, spool.sides, duplicate, pack)
    names = [source.name for source in data.sources]
    taken = {
        name: np.flatnonzero((chosen.copies == 1) & (spool.sources == number)) for number, name in enumerate(names)
    }
    for name, kept in (("openorca", "cot."), ("sharegpt", "s")):
        frame = pd.DataFrame(row for row in small_files()[name] if row["id"].startswith(kept) and row["id"] != "short")
        drawn = frame.sample(n=SAMPLED[name], random_state=42, replace=False)
        assert {identity.decode() for identity in spool.identities(taken[name])} == set(drawn["id"])
    assert {name: len(indices) for name, indices in taken.items()} == {
        "codeact": 3,
        "openorca": 40,
        "sharegpt": 7,
        "sharegpt-gpt4": 5,
        "camel": 1,
        "dove": 2,
        "lesswrong": 1,
    }
    spool.close()


@pytest.mark.parametrize(("name", "rows"), [("openorca", 50_000), ("sharegpt", 10_000), ("codeact", None)])
def test_the_recipe_draws_the_published_numbers(name: str, rows: int | None) -> None:
    sources = {source.name: source for source in load_recipe("codeact-mixture").data.sources}
    assert (sources[name].rows, sources[name].rows_seed) == (rows, 42)
