"""An export of a committed checkpoint has the bytes that it always had, on any machine.

``export/`` holds what export reads: a checkpoint of 2 x 2 ranks with split masters, the native description and the final
tokenizer, written once by an earlier version; so this also says that files of that version still open. After a decision to
change the output (count up export's ``output_version``), ``--regenerate`` writes the digests anew, never the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagecoach.outputs import Output, open_input
from stagecoach.paths import checkpoint_prefix
from stagecoach.storage.memory import MemoryStore
from tests.tiny_models import Pipeline

FOLDER = Path(__file__).with_name("export")
EXPECTED = FOLDER / "expected.json"


def files_of(folder: Path) -> dict[str, bytes]:
    """Return a committed folder's files, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_bytes_of_an_export_are_pinned(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pipeline = Pipeline(MemoryStore(), tmp_path)
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", files_of(FOLDER / "tokenizer"))
    native = pipeline.finish("native/m-1/", files_of(FOLDER / "native"), summary={"license": "apache-2.0"})
    checkpoint = pipeline.finish(
        checkpoint_prefix("trained/m-1/", 3, 1), files_of(FOLDER / "checkpoint"), in_place=True
    )
    output = Output(pipeline.store, "trained/m-1/", tmp_path / "out")
    for name, entry in checkpoint.manifest.objects.items():
        output.adopt(f"iter_0000003/{name}", entry)
    output.summary.update({"last": 3, "best": 3, "iterations": [3]})
    output.commit(task="train", key="1", name="tiny", output_version=1)
    trained = open_input(pipeline.store, "trained/m-1/", tmp_path / "in")
    found = {}
    for dtype in ("bf16", "fp16", "fp32"):
        exported = pipeline.export(trained, native, tokenizer, f"exports/{dtype}-1/", dtype=dtype, iteration="best")
        found[dtype] = {name: exported.entry(name).sha256 for name in exported.names()}
    if request.config.getoption("--regenerate"):
        EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert found == json.loads(EXPECTED.read_text(encoding="utf-8"))
