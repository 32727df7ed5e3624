"""Evaluation, answers and state on several ranks, and a checkpoint of one layout continued by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist

from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.engine import Engine
from stagecoach_train.parallel.shares import topology_of, wants_of_rank
from stagecoach_train.results import Range, StatePiece
from tests.distributed.ranks import run_ranks
from tests.distributed.training_cases import (
    SHAPE,
    Arrays,
    assemble,
    config_of,
    initial_weights,
    micro_batch,
    reader,
    tiny_spec,
    train,
    train_layouts,
)

LAYOUTS: list[dict[str, Any]] = [
    {"tensor_parallel": 2},
    {"pipeline_parallel": 2, "virtual_stages": 2},
    {"data_parallel": 2, "data_parallel_kind": "fsdp"},
    {"data_parallel": 2},
]


def read_of(whole: Arrays) -> Any:
    """A reader of a checkpoint that is in memory."""

    def read(name: str, kind: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        found = whole[f"{name}/{kind}"]
        return found[slice(*rows)] if cols is None else found[slice(*rows), slice(*cols)]

    return read


def trained(config: TrainConfig, start: Arrays | None, steps: range) -> dict[str, Any]:
    """Train some steps from a state (or the beginning), then evaluate and answer."""
    spec, layout = tiny_spec(tied_embeddings=True), config.layout
    topology = Topology(layout.data_parallel, layout.tensor_parallel, layout.pipeline_parallel)
    dp_rank = topology.coordinates(dist.get_rank() if dist.is_initialized() else 0).dp
    a_rank = 4 // layout.data_parallel
    engine = Engine(config, spec, topology, torch.device("cpu"), num_micro_batches=a_rank, shape=SHAPE)
    if start is None:
        engine.load_weights(reader(initial_weights(spec)))
    else:
        engine.load_state(read_of(start), num_updates=steps.start)
    for step in steps:
        batches = [micro_batch(4 * step + i) for i in range(4)]
        mine = batches[dp_rank * a_rank : (dp_rank + 1) * a_rank]
        engine.train_step(mine, sum(batch.num_targets for batch in batches), 1e-3)
    heldout = engine.evaluate(micro_batch(1_000))
    return {
        "pieces": list(engine.state_pieces()),
        "loss": heldout.loss_sum,
        "documents": heldout.document_loss_sums,
        "correct": heldout.num_correct,
        "answer": engine.greedy([6, 9, 12], 6, [999]),
        "updates": engine.num_updates,
    }


def trained_in_turn(configs: list[TrainConfig], start: Arrays, steps: range) -> list[dict[str, Any]]:
    """Continue the same state on one layout after the other."""
    return [trained(config, start, steps) for config in configs]


@pytest.mark.distributed
def test_a_checkpoint_is_continued_by_every_layout(tmp_path: Path) -> None:
    spec = tiny_spec(tied_embeddings=True)
    half = trained(config_of("fp64"), None, range(2))
    start = assemble(spec, half["pieces"])
    straight = trained(config_of("fp64"), start, range(2, 4))
    expected = assemble(spec, straight["pieces"])
    configs = [config_of("fp64", **layout) for layout in LAYOUTS]
    ranks = run_ranks(2, trained_in_turn, configs, start, range(2, 4), folder=tmp_path, timeout_seconds=600)
    for index, config in enumerate(configs):
        name = config.layout.model_dump_json(exclude_defaults=True)
        for rank in ranks:
            result = rank[index]
            assert result["loss"] == pytest.approx(straight["loss"], rel=1e-10), name
            np.testing.assert_allclose(result["documents"], straight["documents"], rtol=1e-9, err_msg=name)
            assert result["correct"] == straight["correct"], name
            assert result["answer"] == straight["answer"], name
            assert result["updates"] == 4, name
        found = assemble(spec, [piece for rank in ranks for piece in rank[index]["pieces"]])
        assert sorted(found) == sorted(expected)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-11, err_msg=f"{name} {key}")


def resumed_bits(configs: list[TrainConfig]) -> list[list[str]]:
    """Train four steps at once, and two steps twice with a checkpoint between; returns the pieces that differ in a bit."""
    spec, differing = tiny_spec(tied_embeddings=True), []
    for config in configs:
        straight = trained(config, None, range(4))["pieces"]
        pieces: list[list[StatePiece]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(pieces, trained(config, None, range(2))["pieces"])
        start = assemble(spec, [piece for rank in pieces for piece in rank])
        resumed = trained(config, start, range(2, 4))["pieces"]
        differing.append(
            [
                f"{one.name}/{one.kind}"
                for one, other in zip(straight, resumed, strict=True)
                if one.tensor.tobytes() != other.tensor.tobytes()
            ]
        )
    return differing


@pytest.mark.distributed
def test_every_layout_goes_on_from_its_own_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    configs = [config_of("fp32", **layout) for layout in LAYOUTS]
    for rank in run_ranks(2, resumed_bits, configs, folder=tmp_path, timeout_seconds=600):
        assert rank == [[]] * len(LAYOUTS)


def skipped_steps(configs: list[TrainConfig]) -> list[tuple[bool, int, bool]]:
    """Break one weight of rank 1, take a step; returns whether it was skipped, the updates, and whether moments moved."""
    found = []
    for config in configs:
        spec, layout = tiny_spec(tied_embeddings=True), config.layout
        topology = Topology(layout.data_parallel, layout.tensor_parallel, layout.pipeline_parallel)
        dp_rank, a_rank = topology.coordinates(dist.get_rank()).dp, 4 // layout.data_parallel
        engine = Engine(config, spec, topology, torch.device("cpu"), num_micro_batches=a_rank, shape=SHAPE)
        engine.load_weights(reader(initial_weights(spec)))
        if dist.get_rank() == 1:
            broken = next(local for local in engine.model.parameters if local.name == "layers.4.mlp.down.weight")
            broken.held_tensor[-1, -1] = float("inf")
        batches = [micro_batch(i) for i in range(4)]
        mine = batches[dp_rank * a_rank : (dp_rank + 1) * a_rank]
        result = engine.train_step(mine, sum(batch.num_targets for batch in batches), 1e-3)
        moved = any(state.exp_avg.any() or state.exp_avg_sq.any() for state in engine.optimizer.state)
        found.append((result.skipped, engine.num_updates, bool(moved)))
    return found


@pytest.mark.distributed
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(tmp_path: Path) -> None:
    configs = [config_of("fp64", **layout) for layout in LAYOUTS]
    for rank in run_ranks(2, skipped_steps, configs, folder=tmp_path, timeout_seconds=600):
        assert rank == [(True, 0, False)] * len(LAYOUTS)


@pytest.mark.distributed
@pytest.mark.slow
def test_bf16_moments_take_the_same_random_bits_on_every_layout(tmp_path: Path) -> None:
    """In float64, so that what is rounded differs by 1e-15 between layouts and no bit falls the other way."""
    spec = tiny_spec(tied_embeddings=True)

    def of(**layout: Any) -> TrainConfig:
        return config_of("fp64", **layout).model_copy(update={"moments_dtype": "bf16"})

    _, pieces, _ = train(spec, of(), steps=5)
    expected = assemble(spec, pieces)
    ranks = run_ranks(2, train_layouts, spec, [of(**layout) for layout in LAYOUTS], 5, folder=tmp_path)
    for index, layout in enumerate(LAYOUTS):
        found = assemble(spec, [piece for rank in ranks for piece in rank[index][1]])
        for key, value in expected.items():
            difference = np.abs(found[key].astype(np.float64) - value.astype(np.float64)).max()
            assert difference <= 1e-9, f"{layout} {key}"


def reads_and_wants(configs: list[TrainConfig], start: Arrays) -> list[tuple[set[Any], set[Any]]]:
    """What an engine reads when it resumes, and what was announced that this rank would read."""
    found = []
    for config in configs:
        spec, layout = tiny_spec(tied_embeddings=True), config.layout
        reads: set[Any] = set()

        def read(name: str, kind: str, rows: Range, cols: Range | None, reads: set[Any] = reads) -> npt.NDArray[Any]:
            reads.add((name, kind, rows, cols))
            return np.asarray(read_of(start)(name, kind, rows, cols))

        a_rank = 4 // layout.data_parallel
        engine = Engine(config, spec, topology_of(config), torch.device("cpu"), num_micro_batches=a_rank, shape=SHAPE)
        engine.load_state(read, num_updates=1)
        wants = wants_of_rank(config, spec, dist.get_rank())
        found.append((reads, {(w.name, w.kind, w.rows, w.cols) for w in wants if w.kind != "master_remainder"}))
    return found


@pytest.mark.distributed
def test_ranks_read_what_was_announced_and_nothing_else(tmp_path: Path) -> None:
    """A machine fetches what is announced; anything else would read as zeros, in silence."""
    spec = tiny_spec(tied_embeddings=True)
    start = assemble(spec, trained(config_of("fp64"), None, range(0))["pieces"])
    configs = [config_of("fp64", **layout) for layout in LAYOUTS]
    for rank in run_ranks(2, reads_and_wants, configs, start, folder=tmp_path, timeout_seconds=600):
        for layout, (reads, wants) in zip(LAYOUTS, rank, strict=True):
            assert reads == wants, layout
