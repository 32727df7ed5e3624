"""The inputs of a training of seconds, written as the stages before it would: random shards, packs of counting
sentences.
"""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.formats.packed import (
    DOCUMENT,
    FORMAT,
    FORMAT_VERSION,
    PACKED_JSON,
    SPLIT_FILES,
    BitWriter,
    pack_records,
)
from stagecoach.formats.shards import SHARDS_JSON, Shards, shard_file_name
from stagecoach.formats.tensor_file import TensorToWrite, write_tensor_file
from stagecoach.outputs import Input, Output, open_input
from stagecoach.parallel.slicing import RankLayout
from stagecoach.storage.base import ObjectStore

PACK_TOKENS = 32
SPEC = ModelSpec(
    family="mistral",
    num_layers=2,
    hidden_size=16,
    intermediate_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=256,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=8,
    max_position_embeddings=PACK_TOKENS,
)


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """The stage's process ends after its work, so it leaves SIGTERM ignored; a test's process goes on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tiny_inputs(
    store: ObjectStore,
    scratch: Path,
    *,
    num_packs: int = 8,
    num_heldout: int = 3,
    untrained: bool = False,
    vocab_size: int = 256,
    spec: ModelSpec = SPEC,
) -> dict[str, Input]:
    """Commit shards and packs and open them."""
    return {
        "shards": _shards(store, scratch, spec),
        "packed": _packed(store, scratch, num_packs, num_heldout, untrained, vocab_size),
    }


def _commit(output: Output, task: str) -> None:
    output.commit(task=task, key="0123456789abcdef", name="tiny", output_version=1)


def _shards(store: ObjectStore, scratch: Path, spec: ModelSpec) -> Input:
    output = Output(store, "shards/tiny-0123456789abcdef/", scratch / "shards")
    layout = RankLayout(1, 1, 1)
    random = np.random.default_rng(5)
    tensors = []
    for tensor in native_tensors(spec):
        values = random.normal(0, 0.1, tensor.shape) if len(tensor.shape) == 2 else np.ones(tensor.shape)
        array = values.astype(np.float32)
        tensors.append(TensorToWrite(tensor.name, array.dtype, array.shape, functools.partial(np.asarray, array)))
    with output.create(shard_file_name(layout, 0, 0)) as stream:
        write_tensor_file(stream, tensors)
    output.write_bytes(SHARDS_JSON, Shards(spec, layout, "F32").to_bytes())
    _commit(output, "shard")
    return open_input(store, output.prefix, scratch / "inputs")


def _packed(
    store: ObjectStore, scratch: Path, num_packs: int, num_heldout: int, untrained: bool, vocab_size: int
) -> Input:
    output = Output(store, "packed/tiny-0123456789abcdef/", scratch / "packed")
    splits = {"train": range(num_packs), "heldout": range(100, 100 + num_heldout)}
    counts = {name: _write_split(output, name, seeds, untrained) for name, seeds in splits.items()}
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pack_tokens": PACK_TOKENS,
        "pad_id": 0,
        "vocab_size": vocab_size,
        "token_dtype": "<u2",
        "sources": ["counting", "other"],
        "files": ["tiny.jsonl"],
        "splits": counts,
    }
    output.write_bytes(PACKED_JSON, json.dumps(description).encode())
    _commit(output, "pack")
    return open_input(store, output.prefix, scratch / "inputs")


def _write_split(output: Output, name: str, seeds: Sequence[int], untrained: bool) -> dict[str, int]:
    """Each pack: a document that counts up from its seed, a shorter one that counts in twos; the rest is free."""
    documents = []
    for seed in seeds:
        length = 12 + seed % 7
        documents.append([(seed + i) % 256 for i in range(length)])
        documents.append([(seed + 2 * i) % 256 for i in range(8)])
    records = np.zeros(len(documents), DOCUMENT)
    records["num_tokens"] = [len(document) for document in documents]
    records["first_token"] = np.cumsum([0, *records["num_tokens"][:-1]]) if documents else []
    records["digest"] = [np.void(bytes([index + 1]) * 16) for index in range(len(documents))]
    records["source"] = [index % 2 for index in range(len(documents))]
    trained = [[place > 0 and not untrained for place in range(len(document))] for document in documents]
    targets = np.array([sum(bits) for bits in trained], np.int64)
    packs = pack_records(records, [2] * len(seeds), targets)
    with output.create(f"{name}/trained.bits") as stream, BitWriter(stream) as writer:
        writer.write(np.array([bit for bits in trained for bit in bits], np.uint8))
    tokens = np.array([token for document in documents for token in document], "<u2")
    contents = {"tokens.bin": tokens, "documents.bin": records, "packs.bin": packs, "ids.bin": np.zeros(0, np.uint8)}
    for file in SPLIT_FILES:
        if file in contents:
            output.write_bytes(f"{name}/{file}", contents[file].tobytes())
    return {"num_tokens": len(tokens), "num_documents": len(documents), "num_packs": len(packs)}
