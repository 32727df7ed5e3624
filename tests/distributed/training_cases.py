"""A tiny model, learnable data and one way to train on any layout, shared by the parity tests."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig, micro_batches_per_rank
from stagecoach_train.batch import Document, MicroBatch, MicroBatchShape, micro_batch_of_documents
from stagecoach_train.engine import Engine
from stagecoach_train.results import Range, ReadWeight, StatePiece

Arrays = dict[str, npt.NDArray[Any]]

VOCAB_SIZE = 300
SHAPE = MicroBatchShape(num_tokens=96, num_documents=12)
MICRO_BATCHES_A_STEP = 8


def tiny_spec(**changes: Any) -> ModelSpec:
    """Five layers (uneven over 2 and 4 stages), 4 heads in 4 groups, a window shorter than the longest document."""
    dims: dict[str, Any] = {
        "family": "mistral",
        "num_layers": 5,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 8,
        "vocab_size": VOCAB_SIZE,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "sliding_window": 16,
    }
    return ModelSpec(**(dims | changes))


def initial_weights(spec: ModelSpec, seed: int = 0) -> Arrays:
    """Norms near 1, everything else normal; fp64 so that every dtype starts from the same numbers."""
    rng = np.random.default_rng(seed)
    weights: Arrays = {}
    for tensor in native_tensors(spec):
        noise = rng.normal(0.0, 0.08, tensor.shape)
        weights[tensor.name] = 1.0 + noise if "norm" in tensor.kind else noise
    return weights


def reader(weights: Arrays) -> ReadWeight:
    """Return the function that `Engine.load_weights` takes."""

    def read(name: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        found = weights[name][rows[0] : rows[1]]
        return found if cols is None else found[:, cols[0] : cols[1]]

    return read


def micro_batch(seed: int) -> MicroBatch:
    """Documents that count upwards in steps of 3, half of them trained; every fifth micro-batch has no target."""
    rng = np.random.default_rng(seed)
    documents: list[Document] = []
    free = SHAPE.num_tokens
    while free > 45 and len(documents) < SHAPE.num_documents - 1:
        length = int(rng.integers(1, 41))
        tokens = (3 * int(rng.integers(0, 5)) + 3 * np.arange(length)) % VOCAB_SIZE
        documents.append(Document(tokens, (rng.random(length) < 0.5) & (seed % 5 != 4)))
        free -= length
    return micro_batch_of_documents(documents, SHAPE)


def train(
    spec: ModelSpec,
    config: TrainConfig,
    *,
    steps: int = 10,
    lr: float = 1e-3,
    empty_tail: bool = True,
    device: str = "cpu",
    weights_seed: int = 0,
) -> tuple[list[float], list[StatePiece], list[float]]:
    """Train on this rank's share of the same global batches; returns losses, state pieces and gradient norms."""
    torch.set_num_threads(1)
    layout = config.layout
    topology = Topology(layout.data_parallel, layout.tensor_parallel, layout.pipeline_parallel)
    dp_rank = topology.coordinates(dist.get_rank() if dist.is_initialized() else 0).dp
    a_rank = micro_batches_per_rank(MICRO_BATCHES_A_STEP, layout.data_parallel, 1)
    place = (
        torch.device(device, dist.get_rank() if dist.is_initialized() else 0)
        if device == "cuda"
        else torch.device(device)
    )
    engine = Engine(config, spec, topology, place, num_micro_batches=a_rank, shape=SHAPE)
    engine.load_weights(reader(initial_weights(spec, weights_seed)))
    losses, norms = [], []
    for step in range(steps):
        everything: list[MicroBatch | None] = [
            micro_batch(step * MICRO_BATCHES_A_STEP + i) for i in range(MICRO_BATCHES_A_STEP)
        ]
        if empty_tail and step == steps - 1:
            everything[-3:] = [None, None, None]
        num_targets = sum(batch.num_targets for batch in everything if batch is not None)
        everything += [None] * (a_rank * layout.data_parallel - MICRO_BATCHES_A_STEP)
        result = engine.train_step(everything[dp_rank * a_rank : (dp_rank + 1) * a_rank], num_targets, lr)
        losses.append(result.loss_sum / num_targets)
        norms.append(result.grad_norm)
    return losses, list(engine.state_pieces()), norms


def train_layouts(
    spec: ModelSpec, configs: list[TrainConfig], steps: int, device: str = "cpu"
) -> list[tuple[Any, Any, Any]]:
    """Train one configuration after the other in the same processes."""
    trained = []
    for config in configs:
        trained.append(train(spec, config, steps=steps, device=device))
        leave_groups()
    return trained


def leave_groups() -> None:
    """Destroy the process groups of a layout: their threads wake for nothing, and a hundred of them fill the cores."""
    gc.collect()
    known = dist.distributed_c10d._world.pg_map
    for group in [group for group in known if group is not dist.group.WORLD]:
        dist.destroy_process_group(group)


def assemble(spec: ModelSpec, pieces: Iterable[StatePiece]) -> Arrays:
    """Put the pieces of all ranks together; fails unless every element of every kind comes exactly once."""
    whole: Arrays = {}
    seen: Arrays = {}
    shapes = {tensor.name: tensor.shape for tensor in native_tensors(spec)}
    for piece in pieces:
        key = f"{piece.name}/{piece.kind}"
        if key not in whole:
            whole[key] = np.zeros(shapes[piece.name], piece.tensor.dtype)
            seen[key] = np.zeros(shapes[piece.name], np.int8)
        place = (slice(*piece.rows),) if piece.cols is None else (slice(*piece.rows), slice(*piece.cols))
        whole[key][place] = piece.tensor
        seen[key][place] += 1
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    missing = [f"{name}/{kind}" for name in shapes for kind in kinds if f"{name}/{kind}" not in seen]
    wrong = [key for key, count in seen.items() if not (count == 1).all()]
    assert not missing and not wrong, f"missing {missing}; not exactly once {wrong}"
    return whole


def config_of(compute_dtype: str = "fp64", **layout: Any) -> TrainConfig:
    """A recipe's train section for this layout.

    Adam divides each gradient by its own size, so where one is near 0 the rounding noise of another order of summation
    becomes a whole step. In fp32 the epsilon is 1e-6 therefore: above that noise (1e-9), far below gradients (2e-3).
    """
    return TrainConfig.model_validate(
        {
            "steps": 10,
            "lr": 1e-3,
            "weight_decay": 0.1,
            "packs_per_step": MICRO_BATCHES_A_STEP,
            "compute_dtype": compute_dtype,
            "eps": 1e-6 if compute_dtype == "fp32" else 1e-8,
            "layout": layout,
        }
    )


def weight_error(found: npt.NDArray[Any], expected: npt.NDArray[Any], dtype: str) -> float:
    """Distance of two tensors: the largest difference in float64, relative Frobenius norm in fp32; both are finite."""
    assert np.isfinite(found).all() and np.isfinite(expected).all(), "a weight is not finite"
    difference = found.astype(np.float64) - expected
    if dtype == "fp64":
        return float(np.abs(difference).max())
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))
