"""The shard stage: native weights are cut into one file a (tensor, pipeline) rank; pure geometry, no number
changes.

Every file is written front to back from views of the mapped native files. Rows of padding are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stagecoach.formats.casting import row_parts
from stagecoach.formats.native import MODEL_JSON, NativeModel, NativeReader
from stagecoach.formats.shards import SHARDS_JSON, Shards, shard_file_name
from stagecoach.formats.tensor_file import DTYPES, Array, TensorToWrite, write_tensor_file
from stagecoach.outputs import Input, Output
from stagecoach.parallel.slicing import LocalTensor, RankLayout, check_layout, local_rectangles
from stagecoach.recipe.shard import ShardConfig
from stagecoach.storage.base import ObjectStore


def run(config: ShardConfig, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    """Write ``shards.json`` and one safetensors file a rank.

    Args:
        config: The recipe's shard section, with every size filled in.
        inputs: ``native``.
        output: Gets the shards.
        store: Not used beyond inputs and output.

    Raises:
        ConfigError: The layout does not fit the model; the legal sizes are named.
    """
    native = inputs["native"]
    model = NativeModel.from_bytes(native.read_bytes(MODEL_JSON), f"{native.prefix}{MODEL_JSON}")
    layout = _layout(config)
    check_layout(model.spec, layout)
    reader = NativeReader(model, native.path)
    shards = Shards(model.spec, layout, model.dtype)
    dtype = DTYPES[model.dtype]
    for number, (tp_rank, pp_rank) in enumerate(layout.ranks):
        name = shard_file_name(layout, tp_rank, pp_rank)
        local = local_rectangles(model.spec, layout, tp_rank, pp_rank)
        with output.create(name) as stream:
            write_tensor_file(stream, [_tensor(reader, tensor, dtype) for tensor in local])
        output.progress(number + 1, len(layout.ranks), name)
    output.write_bytes(SHARDS_JSON, shards.to_bytes())
    output.summary.update(
        {
            "family": model.spec.family,
            "layout": layout.to_json(),
            "dtype": model.dtype,
            "vocab_size": model.spec.vocab_size,
            "padded_vocab_size": shards.padded_vocab_size,
        }
    )


def _layout(config: ShardConfig) -> RankLayout:
    sizes = (config.tensor_parallel, config.pipeline_parallel, config.virtual_stages)
    tensor_parallel, pipeline_parallel, virtual_stages = (1 if size is None else size for size in sizes)
    return RankLayout(tensor_parallel, pipeline_parallel, virtual_stages)


def _tensor(reader: NativeReader, local: LocalTensor, dtype: np.dtype[Any]) -> TensorToWrite:
    def produce() -> Iterator[Array]:
        for piece in local.pieces:
            yield from row_parts(reader.rectangle(local.name, piece.rows, piece.cols), dtype)
        if local.padding_rows is not None:
            start, end = local.padding_rows
            yield np.zeros((end - start, *local.local_shape[1:]), dtype)

    return TensorToWrite(local.name, dtype, local.local_shape, produce)
