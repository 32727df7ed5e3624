"""Real weights through convert, shard and export on every layout that SmolLM2's three key/value heads allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stagecoach.formats.tensor_file import TensorFile
from stagecoach.formats.tokenizer import build_final_tokenizer
from stagecoach.storage.local import LocalStore
from tests.real.smollm2 import write_hub_directory
from tests.tiny_models import Pipeline

LAYOUTS = [(tensor, pipeline) for tensor in (1, 3) for pipeline in (1, 2, 4)]

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_every_layout_gives_back_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_hub_directory(source)
    pipeline = Pipeline(LocalStore(tmp_path / "store"), tmp_path)
    model = pipeline.finish("sources/models/m-1/", {path.name: path.read_bytes() for path in source.iterdir()})
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", build_final_tokenizer(source, "tokenizer"))
    native = pipeline.convert(model, tokenizer)
    trained = {}
    for tensor, stages in LAYOUTS:
        shards = pipeline.shard(native, tensor, stages)
        trained[tensor, stages] = pipeline.checkpoint_of(shards, f"trained/m-{tensor}-{stages}/")
    pipeline.store.delete([model.entry("model.safetensors").path, native.entry("model.safetensors").path])
    digests = {}
    for layout in LAYOUTS:
        exported = pipeline.export(
            trained[layout], native, tokenizer, f"exports/m-{layout[0]}-{layout[1]}/", dtype="fp32"
        )
        digests[layout] = exported.entry("model.safetensors").sha256
        folder = tmp_path / "export"
        folder.mkdir(exist_ok=True)
        for name in exported.names():
            (folder / name).write_bytes(exported.read_bytes(name))
        pipeline.store.delete([exported.entry("model.safetensors").path])
    assert digests == dict.fromkeys(LAYOUTS, digests[1, 1])
    found, expected = (TensorFile.open(place / "model.safetensors") for place in (folder, source))
    assert sorted(found.names()) == sorted(expected.names())
    assert all(np.array_equal(found.tensor(name), expected.tensor(name)) for name in expected.names())
    ids = torch.arange(100, 164)[None]
    with torch.inference_mode():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)(ids).logits for place in (folder, source)
        )
    assert float((ours - theirs).abs().max()) <= 1e-5
