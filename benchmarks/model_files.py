"""Makes the inputs that ``benchmarks.models`` measures with: Mistral-7B's shapes, random bf16 numbers, any store."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.architectures.hf_names import hub_tensors
from stagecoach.architectures.registry import ModelSpec
from stagecoach.formats.checkpoint import CheckpointIndex
from stagecoach.formats.hf_model import HUB_METADATA, hub_weight_files
from stagecoach.formats.shards import Shards, shard_file_name, shards_as_pieces
from stagecoach.formats.tensor_file import BFLOAT16, Array, TensorToWrite, write_tensor_file
from stagecoach.manifest import Digests
from stagecoach.outputs import Output, open_input
from stagecoach.storage.base import ObjectStore

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
PREFIXES = {
    "model": "sources/models/b-0/",
    "tokenizer": "sources/tokenizers/b-0/",
    "native": "native/b-0/",
    "shards": "shards/b-0/",
    "trained": "trained/b-0/",
    "exports": "exports/b-0/",
}
"""Kind of output -> where it lies in the store."""
_ROWS_AT_ONCE = 1024


def make_source(store: ObjectStore, scratch: Path, num_layers: int) -> None:
    """Write a Hub directory of ``num_layers`` layers and a tokenizer with the ChatML tokens as finished outputs."""
    config = {**CONFIG, "num_hidden_layers": num_layers}
    output = Output(store, PREFIXES["model"], scratch)
    output.write_bytes("config.json", json.dumps(config).encode())
    tensors = [
        TensorToWrite(tensor.name, BFLOAT16, tensor.shape, lambda t=tensor: _random_rows(t.name, t.shape))  # type: ignore[misc]
        for tensor in hub_tensors(ModelSpec.from_hf_config(config))
    ]
    files, index = hub_weight_files(tensors, 5_000_000_000)
    for file, mine in files.items():
        with output.create(file) as stream:
            write_tensor_file(stream, mine, HUB_METADATA)
    if index is not None:
        output.write_bytes("model.safetensors.index.json", index)
    finish(output)
    words = {f"w{at}": at for at in range(CONFIG["vocab_size"])}
    words |= {"<|im_start|>": CONFIG["vocab_size"], "<|im_end|>": CONFIG["vocab_size"] + 1}
    tokenizer = Output(store, PREFIXES["tokenizer"], scratch)
    tokenizer.write_bytes("tokenizer.json", json.dumps({"model": {"vocab": words}}).encode())
    tokenizer.write_bytes("tokenizer_config.json", json.dumps({"eos_token": "<|im_end|>"}).encode())
    finish(tokenizer)


def make_trained(store: ObjectStore, scratch: Path) -> None:
    """Record the shards as the checkpoint of a training: they are one, but for an index, which is computed here."""
    shards = open_input(store, PREFIXES["shards"], scratch)
    found = Shards.from_bytes(shards.read_bytes("shards.json"))
    entries = shards_as_pieces(found.spec, found.layout, lambda tp, pp: f"rank-{tp:05d}.safetensors")
    index = CheckpointIndex.build(found.spec, entries).to_bytes()
    output = Output(store, PREFIXES["trained"], scratch)
    key = f"{PREFIXES['trained']}iter_0000001/attempt-0001/index.json"
    store.put(key, index)
    digests = Digests()
    digests.update(index)
    output.adopt("iter_0000001/index.json", digests.entry(key))
    for tp, pp in found.layout.ranks:
        output.adopt(f"iter_0000001/rank-{tp:05d}.safetensors", shards.entry(shard_file_name(found.layout, tp, pp)))
    output.summary.update({"last": 1, "best": None, "iterations": [1]})
    finish(output)


def finish(output: Output) -> None:
    """Commit an output as a stage's contract would."""
    output.commit(task="t", key="0", name="b", output_version=1)


def weight_keys(store: ObjectStore, kind: str, scratch: Path) -> list[str]:
    """Return the keys of one output's safetensors files."""
    found = open_input(store, PREFIXES[kind], scratch)
    return [found.entry(name).path for name in found.names() if name.endswith(".safetensors")]


def _random_rows(name: str, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield a tensor of one or two dimensions, finite numbers below 2, in parts of rows."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    for start in range(0, shape[0], _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, shape[0] - start)
        bits = generator.integers(0, 2**16, (rows, *shape[1:]), np.uint16)
        # Without the exponent's highest bit there is no infinity.
        yield (bits & np.uint16(0xBFFF)).view(BFLOAT16)
