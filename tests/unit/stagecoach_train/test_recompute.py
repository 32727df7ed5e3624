"""Recompute and compilation change what is kept, never what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from stagecoach.architectures.registry import ModelSpec
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import RecomputeMode, TrainConfig
from stagecoach_train.batch import Document, MicroBatchShape, micro_batch_of_documents
from stagecoach_train.engine import Engine
from stagecoach_train.memory_plan import kept_bytes_per_token

SPEC = ModelSpec(
    family="mistral", num_layers=2, hidden_size=32, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=8,
    vocab_size=64, norm_eps=1e-5, rope_theta=10_000.0, sliding_window=8,
)  # fmt: skip
SHAPE = MicroBatchShape(num_tokens=64, num_documents=4)
BACKEND = "aot_eager_decomp_partition"


def engine_of(
    recompute: RecomputeMode | tuple[RecomputeMode, ...],
    *,
    compile_backend: str | None = None,
    dtype: str = "fp64",
    **fields: str,
) -> Engine:
    """The same weights whatever the way of running."""
    config = TrainConfig.model_validate(
        {"steps": 1, "compute_dtype": dtype, **fields, "recompute": recompute, "attention": "varlen"}
    )
    engine = Engine(
        config, SPEC, Topology(), torch.device("cpu"), num_micro_batches=1, shape=SHAPE, compile_backend=compile_backend
    )
    rng = np.random.default_rng(0)
    engine.load_weights(lambda _name, rows, cols: rng.normal(0, 0.2, (rows[1] - rows[0], *((cols and cols[1:]) or ()))))
    return engine


def gradients(engine: Engine) -> list[torch.Tensor]:
    """Of one micro-batch of three documents."""
    rng = np.random.default_rng(1)
    documents = [Document(rng.integers(0, 64, n), rng.random(n) < 0.5) for n in (20, 1, 30)]
    engine.model.gradients.begin()
    engine.pipeline.forward_backward([engine.streams.make(micro_batch_of_documents(documents, SHAPE), scale=0.1)])
    return engine.model.gradients.finish()


@pytest.mark.parametrize("compile_backend", [None, BACKEND])
@pytest.mark.parametrize("recompute", ["selective", "selective_mlp", "full", ("full", "selective_mlp")])
def test_gradients_are_the_same_in_every_mode(recompute: RecomputeMode, compile_backend: str | None) -> None:
    expected = gradients(engine_of("none"))
    for got, wanted in zip(gradients(engine_of(recompute, compile_backend=compile_backend)), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@contextmanager
def counting_kept_bytes() -> Iterator[list[int]]:
    """Sum the storages that autograd keeps, each once."""
    seen: dict[int, torch.Tensor] = {}
    total = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in seen:
            seen[tensor.untyped_storage().data_ptr()] = tensor
            total[0] += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


@pytest.mark.parametrize("precision", ["compute_dtype", "fp8_tensorwise"])
@pytest.mark.parametrize("recompute", ["selective", "selective_mlp", "full"])
def test_compiled_layers_keep_exactly_what_the_memory_plan_counts(recompute: RecomputeMode, precision: str) -> None:
    engine = engine_of(recompute, compile_backend=BACKEND, dtype="bf16", matmul_precision=precision)
    batch = micro_batch_of_documents([Document(np.zeros(64, int), np.ones(64, bool))], SHAPE)
    stream = engine.streams.make(batch, scale=1.0)
    layer = engine.model.stages[0].layers[0]
    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    layer(x, stream).sum().backward()
    engine.model.gradients.begin()
    with counting_kept_bytes() as kept:
        layer(x, stream)
    shared = [*layer.parameters(), stream.rotary.cos_T1F, stream.rotary.sin_T1F, stream.documents.cu_seqlens]
    shared_bytes = sum(tensor.untyped_storage().nbytes() for tensor in shared) + 4
    planned = kept_bytes_per_token(SPEC, engine.config, recompute) * 64
    assert kept[0] - shared_bytes == pytest.approx(planned, abs=64)


def test_other_documents_compile_nothing_again() -> None:
    from torch._dynamo.utils import counters

    engine = engine_of(("selective", "full"), compile_backend=BACKEND, dtype="bf16")
    rng = np.random.default_rng(2)
    graphs = []
    for step in range(8):
        lengths = [64] if step == 0 else [step, 2 * step + 1, 5]
        documents = [Document(rng.integers(0, 64, n), np.ones(n, bool)) for n in lengths]
        batch = micro_batch_of_documents(documents, SHAPE)
        engine.train_step([batch], batch.num_targets, 1e-3)
        graphs.append(int(counters["stats"]["unique_graphs"]))
    assert graphs[1:] == [graphs[1]] * 7
