"""One rank's engine: skipped steps, empty micro-batches, evaluation, answers, and state that comes back bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from stagecoach.errors import ConfigError, DataError
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.engine import Engine
from stagecoach_train.results import Range
from tests.distributed.training_cases import SHAPE, Arrays, assemble, initial_weights, micro_batch, reader, tiny_spec

SPEC = tiny_spec(num_layers=2)


def engine_of(num_micro_batches: int = 2, **config: Any) -> Engine:
    train = TrainConfig.model_validate({"steps": 10, "compute_dtype": "fp32"} | config)
    engine = Engine(train, SPEC, Topology(), torch.device("cpu"), num_micro_batches=num_micro_batches, shape=SHAPE)
    engine.load_weights(reader(initial_weights(SPEC)))
    return engine


def stored(engine: Engine) -> Any:
    """The engine's state as a reader, as if it had been written and opened again."""
    whole = assemble(SPEC, engine.state_pieces())

    def read(name: str, kind: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        found = whole[f"{name}/{kind}"]
        return found[slice(*rows)] if cols is None else found[slice(*rows), slice(*cols)]

    return read


def step(engine: Engine, number: int, lr: float = 1e-3) -> float:
    batches = [micro_batch(2 * number), micro_batch(2 * number + 1)]
    return engine.train_step(batches, sum(batch.num_targets for batch in batches), lr).loss_sum


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"moments_dtype": "bf16"},
        {"compute_dtype": "bf16"},
        {"compute_dtype": "bf16", "moments_dtype": "bf16"},
        {"compute_dtype": "fp64", "moments_dtype": "bf16"},
    ],
)
def test_a_resumed_engine_goes_on_bit_for_bit(config: dict[str, Any]) -> None:
    straight = engine_of(**config)
    for number in range(3):
        step(straight, number)
    resumed = engine_of(**config)
    resumed.load_state(stored(straight), num_updates=straight.num_updates)
    for number in range(3, 6):
        assert step(straight, number) == step(resumed, number)
    ours, theirs = assemble(SPEC, straight.state_pieces()), assemble(SPEC, resumed.state_pieces())
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_split_masters_written_by_a_bf16_engine_are_read_exactly_by_an_fp32_one() -> None:
    split = engine_of(compute_dtype="bf16")
    step(split, 0)
    whole = engine_of()
    whole.load_state(stored(split), num_updates=1)
    again = engine_of(compute_dtype="bf16")
    again.load_state(stored(whole), num_updates=1)
    ours, theirs = assemble(SPEC, split.state_pieces()), assemble(SPEC, again.state_pieces())
    assert sorted(ours) == sorted(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_gradient_that_is_not_finite_skips_the_step() -> None:
    engine = engine_of()
    step(engine, 0)
    before = assemble(SPEC, engine.state_pieces())
    engine.model.parameters[0].parameter.data[:] = float("inf")
    batches = [micro_batch(1), micro_batch(2)]
    result = engine.train_step(batches, sum(batch.num_targets for batch in batches), 1e-3)
    assert result.skipped
    assert engine.num_updates == 1
    after = assemble(SPEC, engine.state_pieces())
    del before["embedding.weight/weight"]
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_gradient_alone_that_is_not_finite_skips_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is fine, as where only the backward pass overflows."""
    engine = engine_of()
    before = assemble(SPEC, engine.state_pieces())
    finish = engine.model.gradients.finish

    def overflowing() -> list[torch.Tensor]:
        gradients = finish()
        gradients[-1].view(-1)[0] = float("inf")
        return gradients

    monkeypatch.setattr(engine.model.gradients, "finish", overflowing)
    batches = [micro_batch(0), micro_batch(1)]
    result = engine.train_step(batches, sum(batch.num_targets for batch in batches), 1e-3)
    assert result.skipped
    assert np.isfinite(result.loss_sum)
    after = assemble(SPEC, engine.state_pieces())
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_loss_alone_that_is_not_finite_skips_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients are fine, as where only the sum of the losses overflows."""
    engine = engine_of()
    before = assemble(SPEC, engine.state_pieces())
    forward_backward = engine.pipeline.forward_backward
    monkeypatch.setattr(engine.pipeline, "forward_backward", lambda streams: forward_backward(streams) + torch.inf)
    batches = [micro_batch(0), micro_batch(1)]
    result = engine.train_step(batches, sum(batch.num_targets for batch in batches), 1e-3)
    assert result.skipped
    assert np.isfinite(result.grad_norm)
    after = assemble(SPEC, engine.state_pieces())
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_clipping_scales_a_long_gradient_down_and_never_a_short_one_up() -> None:
    """Adam divides by the gradient's size, so losses and weights would hardly show it; the moments do."""

    def after_one_step(clip_norm: float | None) -> tuple[float, np.ndarray]:
        engine = engine_of(compute_dtype="fp64", clip_norm=clip_norm)
        batches = [micro_batch(0), micro_batch(1)]
        result = engine.train_step(batches, sum(batch.num_targets for batch in batches), 1e-3)
        return result.grad_norm, assemble(SPEC, engine.state_pieces())["layers.0.mlp.down.weight/exp_avg"]

    norm, unclipped = after_one_step(None)
    assert np.array_equal(after_one_step(2 * norm)[1], unclipped)
    half_norm, clipped = after_one_step(norm / 2)
    assert half_norm == norm
    np.testing.assert_allclose(clipped, unclipped * (norm / 2) / (norm + 1e-6), rtol=1e-12)


MATRICES = {f"layers.0.{name}.weight" for name in ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.down")}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_weight_decay_moves_matrices_only_and_the_ends_if_asked_to(tied: bool, decay_embeddings: bool) -> None:
    spec = tiny_spec(family="qwen2", num_layers=1, sliding_window=None, qkv_bias=True, tied_embeddings=tied)

    def after_one_step(weight_decay: float) -> Arrays:
        config = TrainConfig(
            steps=1, compute_dtype="fp64", weight_decay=weight_decay, decay_embeddings=decay_embeddings
        )
        engine = Engine(config, spec, Topology(), torch.device("cpu"), num_micro_batches=1, shape=SHAPE)
        engine.load_weights(reader(initial_weights(spec)))
        batch = micro_batch(0)
        engine.train_step([batch], batch.num_targets, 1e-3)
        return assemble(spec, engine.state_pieces())

    plain, decayed = after_one_step(0.0), after_one_step(0.5)
    moved = {name for name in initial_weights(spec) if (plain[f"{name}/weight"] != decayed[f"{name}/weight"]).any()}
    ends = {"embedding.weight"} if tied else {"embedding.weight", "head.weight"}
    assert moved == MATRICES | (ends if decay_embeddings else set())


def test_an_empty_micro_batch_adds_nothing() -> None:
    with_empty, alone = engine_of(num_micro_batches=2), engine_of(num_micro_batches=1)
    batch = micro_batch(3)
    first = with_empty.train_step([batch, None], batch.num_targets, 1e-3)
    second = alone.train_step([batch], batch.num_targets, 1e-3)
    assert first == second


def test_a_step_without_targets_is_refused() -> None:
    with pytest.raises(DataError, match="at least one trained target"):
        engine_of().train_step([None, None], 0, 1e-3)


def test_another_number_of_micro_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 micro-batches, got 1"):
        engine_of().train_step([micro_batch(0)], 1, 1e-3)


def test_evaluation_tells_documents_apart_and_trains_nothing() -> None:
    engine = engine_of()
    before = assemble(SPEC, engine.state_pieces())
    batch = micro_batch(3)
    result = engine.evaluate(batch)
    assert result.num_targets == batch.num_targets == result.document_num_targets.sum()
    assert result.document_loss_sums.shape == (SHAPE.num_documents,)
    assert result.document_loss_sums.sum() == pytest.approx(result.loss_sum)
    assert result.num_correct == result.document_num_correct.sum()
    after = assemble(SPEC, engine.state_pieces())
    assert all(np.array_equal(before[key], after[key]) for key in before)
    trained = engine.train_step([batch, None], batch.num_targets, 1e-3)
    assert trained.loss_sum == pytest.approx(result.loss_sum, rel=1e-5)


def test_what_was_learned_is_answered_and_stops() -> None:
    engine = engine_of(lr=1e-2)
    for _ in range(4):
        for number in range(20):
            step(engine, number, lr=1e-2)
    answer = engine.greedy([6, 9, 12, 15], 10, [33])
    assert answer == [18, 21, 24, 27, 30, 33]
    assert engine.greedy([6, 9, 12, 15], 2, [33]) == [18, 21]


def test_the_pieces_of_one_rank_are_the_whole_model() -> None:
    whole = assemble(SPEC, engine_of().state_pieces())
    expected = initial_weights(SPEC)
    for name, weight in expected.items():
        assert np.array_equal(whole[f"{name}/weight"], weight.astype(np.float32))


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16"])
def test_a_snapshot_stays_what_it_was_while_training_goes_on(compute_dtype: str) -> None:
    """It is written in the background, steps later."""
    engine = engine_of(compute_dtype=compute_dtype)
    step(engine, 0)
    snapshot = list(engine.state_pieces())
    before = [piece.tensor.tobytes() for piece in snapshot]
    step(engine, 1)
    assert [piece.tensor.tobytes() for piece in snapshot] == before


def test_one_recompute_mode_a_layer_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="recompute lists 1 layers but the model has 2"):
        engine_of(recompute=("full",))
