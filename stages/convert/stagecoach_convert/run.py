"""The convert stage: a Hub model and the final tokenizer become native weights with the final vocabulary.

Numbers change in two ways only: the storage dtype, and the rows of new tokens. One tensor is held at a time,
mapped from its file; every tensor of the source is used or knowingly dropped, every native tensor is filled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stagecoach.architectures.hf_names import hub_tensors, source_rows
from stagecoach.architectures.registry import ModelSpec, TensorSpec, native_tensors
from stagecoach.formats.casting import checked_parts
from stagecoach.formats.hf_model import (
    GENERATION_CONFIG_JSON,
    TensorSource,
    read_json_object,
    vocabulary,
)
from stagecoach.formats.native import MODEL_JSON, NativeModel, split_into_files
from stagecoach.formats.tensor_file import BFLOAT16, DTYPES, Array, TensorToWrite, write_tensor_file
from stagecoach.outputs import Input, Output
from stagecoach.recipe.convert import ConvertConfig
from stagecoach.storage.base import ObjectStore
from stagecoach_convert.accounting import account_for
from stagecoach_convert.provenance import base_model
from stagecoach_convert.sources import open_source
from stagecoach_convert.vocabulary import Growth, new_rows, plan_growth

MAX_FILE_SIZE_BYTES = 5_000_000_000


def run(config: ConvertConfig, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    """Write ``model.json`` and the native weights.

    Args:
        config: The recipe's convert section.
        inputs: ``model`` (a Hub directory) and ``tokenizer`` (with the final ``tokenizer.json``).
        output: Gets the native model.
        store: Not used beyond inputs and output.

    Raises:
        DataError: Model, config.json and tokenizer do not fit each other, or a weight is not finite; all
        names are given.
    """
    model = inputs["model"]
    ids = vocabulary(inputs["tokenizer"].read_bytes("tokenizer.json"), f"{inputs['tokenizer'].prefix}tokenizer.json")
    base_config, source = open_source(model, 1 + max(ids.values()))
    base_spec = ModelSpec.from_hf_config(base_config)
    dropped = account_for(source, base_spec)
    growth = plan_growth(base_spec.vocab_size, ids, source.origin)
    spec = dataclasses.replace(base_spec, vocab_size=growth.new_rows)
    dtype = _storage_dtype(config, source, base_spec)
    tensors = [_tensor(config, source, spec, growth, tensor, dtype) for tensor in native_tensors(spec)]
    files = split_into_files({tensor.name: tensor.size_bytes for tensor in tensors}, MAX_FILE_SIZE_BYTES)
    _write(tensors, files, output)
    native = NativeModel(
        spec=spec,
        dtype="BF16" if dtype == BFLOAT16 else "F32",
        files=files,
        base_config=base_config,
        base_generation_config=_generation_config(model),
        source_vocab_size=growth.old_rows,
        new_tokens=growth.new_tokens,
        dropped=tuple(dropped),
    )
    output.write_bytes(MODEL_JSON, native.to_bytes())
    output.summary.update(
        {
            "family": spec.family,
            "parameters": spec.num_parameters,
            "dtype": native.dtype,
            "vocab_size": spec.vocab_size,
            "new_tokens": dict(growth.new_tokens),
            "dropped_tensors": len(dropped),
            **base_model(model),
        }
    )


def _write(tensors: list[TensorToWrite], files: Mapping[str, str], output: Output) -> None:
    total = sum(tensor.size_bytes for tensor in tensors)
    done = 0

    def with_progress(tensor: TensorToWrite) -> TensorToWrite:
        def produce() -> Iterator[Array]:
            nonlocal done
            for part in tensor.produce():
                yield part
                done += part.nbytes
                output.progress(done, total, tensor.name)

        return dataclasses.replace(tensor, produce=produce)

    for file in dict.fromkeys(files.values()):
        with output.create(file) as stream:
            write_tensor_file(stream, [with_progress(tensor) for tensor in tensors if files[tensor.name] == file])


def _tensor(
    config: ConvertConfig,
    source: TensorSource,
    spec: ModelSpec,
    growth: Growth,
    tensor: TensorSpec,
    dtype: np.dtype[Any],
) -> TensorToWrite:
    """Return one native tensor, to be put together from the source's rows when its turn comes."""

    def produce() -> Iterator[Array]:
        for run in source_rows(spec, tensor):
            rows = source.tensor(run.tensor)[run.start : min(run.end, growth.old_rows) if grows else run.end]
            yield from checked(run.tensor, rows)
            if grows and growth.new_rows > growth.old_rows:
                count = growth.new_rows - growth.old_rows
                made = new_rows(rows, count, noise=config.new_row_noise, seed=config.seed, name=tensor.name)
                yield from checked(tensor.name, made)

    def checked(name: str, rows: Array) -> Iterator[Array]:
        advice = "take another copy of the model, or set convert.allow_non_finite"
        return checked_parts(name, rows, dtype, advice=advice, allow_non_finite=config.allow_non_finite)

    grows = tensor.kind in ("embedding", "head")
    return TensorToWrite(tensor.name, dtype, tensor.shape, produce)


def _storage_dtype(config: ConvertConfig, source: TensorSource, spec: ModelSpec) -> np.dtype[Any]:
    """Return bf16 if the recipe says so, or leaves it to a source that is bf16 throughout; else fp32."""
    if config.dtype == "source":
        throughout = all(source.dtype(tensor.name) == BFLOAT16 for tensor in hub_tensors(spec))
        return BFLOAT16 if throughout else DTYPES["F32"]
    return BFLOAT16 if config.dtype == "bf16" else DTYPES["F32"]


def _generation_config(model: Input) -> dict[str, Any] | None:
    if GENERATION_CONFIG_JSON not in model.names():
        return None
    origin = f"{model.prefix}{GENERATION_CONFIG_JSON}"
    return read_json_object(model.read_bytes(GENERATION_CONFIG_JSON), origin)
