"""Runs the pack stage on a store in a folder, as the contract would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagecoach.outputs import Input, Output, open_input
from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach.storage.local import LocalStore
from stagecoach_pack.run import run
from tests.unit.stagecoach_pack.chat_tokenizers import Family, final_files


def finished(store: LocalStore, prefix: str, files: Mapping[str, bytes], scratch: Path) -> Input:
    """Write files as a finished output and open it as an input."""
    output = Output(store, prefix, scratch)
    for name, data in files.items():
        output.write_bytes(name, data)
    output.commit(task="test", key="0" * 20, name="test", output_version=1)
    return open_input(store, prefix, scratch)


def pack_run(
    folder: Path,
    sources: Mapping[str, Mapping[str, bytes]],
    *,
    family: Family = "smollm2",
    data: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    **pack: Any,
) -> Input:
    """Pack the files of each source and return the finished output.

    Args:
        folder: Holds store and scratch.
        sources: Files of each source, by name.
        family: Which tokenizer.
        data: Further fields of the data section.
        source: Further fields of every source.
        pack: Fields of the pack section; 256 tokens and ``split`` where they are not given.
    """
    store, scratch = LocalStore(folder / "store"), folder / "scratch"
    entries = [{"name": name, "source": {"kind": "embedded"}, **(source or {})} for name in sources]
    config = PackTaskConfig.model_validate(
        {
            "data": {"name": "d", "sources": entries, **(data or {})},
            "pack": {"pack_tokens": 256, "too_long": "split", **pack},
        }
    )
    inputs = {"tokenizer": finished(store, "sources/tokenizers/t/", final_files(family), scratch)}
    for name, files in sources.items():
        inputs[f"data-{name}"] = finished(store, f"sources/datasets/{name}/", files, scratch)
    output = Output(store, "packed/d/", scratch)
    run(config, inputs, output, store)
    output.commit(task="pack", key="0" * 20, name="d", output_version=1)
    return open_input(store, "packed/d/", scratch)


def json_lines(*rows: Any) -> bytes:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
