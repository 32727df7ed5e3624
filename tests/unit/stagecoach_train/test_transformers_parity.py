"""The engine against transformers: logits, gradients, losses of packed documents, fifty steps of training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from stagecoach_train.batch import Document, MicroBatchShape, micro_batch_of_documents
from tests.unit.stagecoach_train.hub_models import MODELS, engine_of, hub_gradients, hub_model, native_of

LENGTHS = (23, 1, 9, 14)
SHAPE = MicroBatchShape(num_tokens=48, num_documents=8)


def documents(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[Document]:
    """Random tokens, 60 % of them trained."""
    rng = np.random.default_rng(seed)
    return [Document(rng.integers(0, 211, n), rng.random(n) < 0.6) for n in lengths]


def relative_error(got: Any, expected: Any) -> float:
    """Largest difference over the largest expected value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def hub_loss_sum(model: Any, document: Document) -> torch.Tensor:
    """Cross entropy of one document alone, by transformers' logits."""
    tokens = torch.as_tensor(np.asarray(document.tokens))
    trained = torch.as_tensor(np.asarray(document.trained)).clone()
    trained[0] = False
    logits = model(tokens[None]).logits[0]
    labels = torch.where(trained, tokens, -100)[1:]
    return torch.nn.functional.cross_entropy(logits[:-1], labels, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers_for_every_packed_document(name: str) -> None:
    model, packed = hub_model(name), documents(1)
    engine = engine_of(model, SHAPE)
    stream = engine.streams.make(micro_batch_of_documents(packed, SHAPE), scale=1.0)
    everything = torch.arange(SHAPE.num_tokens)

    stream = dataclasses.replace(stream, rows_R=everything, targets_R=torch.full_like(everything, -100))
    with torch.no_grad():
        logits = engine.model.stages[0](None, stream, "logits")
        start = 0
        for document in packed:
            tokens = torch.as_tensor(np.asarray(document.tokens))
            expected = model(tokens[None]).logits[0]
            got = logits[start : start + len(tokens), :211]
            assert relative_error(got.numpy(), expected.numpy()) <= 1e-5
            start += len(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_transformers(name: str) -> None:
    model, packed = hub_model(name), documents(2)
    engine = engine_of(model, SHAPE)
    batch = micro_batch_of_documents(packed, SHAPE)
    engine.model.gradients.begin()
    engine.pipeline.forward_backward([engine.streams.make(batch, scale=1.0 / batch.num_targets)])
    total = torch.stack([hub_loss_sum(model, document) for document in packed]).sum()
    torch.autograd.backward(total / batch.num_targets)
    expected = native_of(engine.spec, hub_gradients(model))
    for local, grad in zip(engine.model.parameters, engine.model.gradients.finish(), strict=True):
        got = grad[: expected[local.name].shape[0]].numpy()
        assert relative_error(got, expected[local.name]) <= 1e-4, local.name


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_equal_transformers_without_a_cache(name: str) -> None:
    model = hub_model(name)
    ids = [5, 17, 101, 3, 44]
    answer = engine_of(model, SHAPE).greedy(ids, 12, [])
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert answer == ids[5:]


@pytest.mark.parametrize("name", ["llama", "mistral-window-8"])
def test_each_document_alone_has_the_loss_it_has_in_a_pack(name: str) -> None:
    engine, packed = engine_of(hub_model(name), SHAPE), documents(3)
    together = engine.evaluate(micro_batch_of_documents(packed, SHAPE))
    for index, document in enumerate(packed):
        alone = engine.evaluate(micro_batch_of_documents([document], SHAPE))
        assert together.document_loss_sums[index] == pytest.approx(alone.loss_sum, rel=1e-6, abs=1e-6)
        assert together.document_num_targets[index] == alone.num_targets


def learnable(seed: int) -> list[Document]:
    """Documents that count upwards, so that fifty steps teach something."""
    rng = np.random.default_rng(seed)
    return [Document((rng.integers(0, 9) + np.arange(n)) % 211, np.arange(n) % 3 > 0) for n in (12, 17, 15)]


@pytest.mark.parametrize("name", ["llama-tied", "mistral-window-8"])
def test_fifty_steps_equal_transformers_with_torch_adamw(name: str) -> None:
    model = hub_model(name)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    engine = engine_of(model, SHAPE, **options)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **options)
    losses = []
    for step in range(50):
        packed = learnable(step)
        batch = micro_batch_of_documents(packed, SHAPE)
        result = engine.train_step([batch], batch.num_targets, 1e-3)
        total = 0.0
        for document in packed:
            loss = hub_loss_sum(model, document) / batch.num_targets
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        assert result.loss_sum / batch.num_targets == pytest.approx(total, abs=1e-5)
    assert losses[-1] <= 0.8 * losses[0]
