"""The engine on one GPU against the CPU in fp32, its resume, and what it compiles."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.batch import Document, micro_batch_of_documents
from stagecoach_train.engine import Engine
from tests.distributed.training_cases import SHAPE, initial_weights, reader, tiny_spec, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = 60


def config_of(compute_dtype: str, **fields: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {"steps": STEPS, "lr": 1e-3, "weight_decay": 0.1, "compute_dtype": compute_dtype, **fields}
    )


@pytest.mark.parametrize("recompute", ["none", "selective", "selective_mlp", "full"])
@pytest.mark.parametrize("moments_dtype", ["fp32", "bf16"])
def test_bf16_on_a_gpu_follows_fp32_on_the_cpu(recompute: str, moments_dtype: str) -> None:
    spec = tiny_spec(num_layers=2)
    expected, _, _ = train(spec, config_of("fp32"), steps=STEPS)
    config = config_of("bf16", moments_dtype=moments_dtype, recompute=recompute)
    losses, _, _ = train(spec, config, steps=STEPS, device="cuda")
    assert expected[-1] <= 0.5 * expected[0]
    assert np.abs(np.subtract(losses, expected)).max() <= 0.05
    assert np.mean(losses[-10:]) == pytest.approx(np.mean(expected[-10:]), abs=0.01)


def test_fp32_on_a_gpu_equals_fp32_on_the_cpu() -> None:
    spec = tiny_spec(num_layers=2)
    expected, _, norms = train(spec, config_of("fp32"), steps=10)
    losses, _, gpu_norms = train(spec, config_of("fp32", compile_blocks=False), steps=10, device="cuda")
    assert losses == pytest.approx(expected, abs=1e-4)
    assert gpu_norms == pytest.approx(norms, rel=1e-3)


def test_fifty_layouts_compile_nothing_after_the_second_step() -> None:
    from torch._dynamo.utils import counters

    spec = tiny_spec(num_layers=2)
    engine = Engine(
        config_of("bf16", recompute=("selective", "full")), spec, Topology(), torch.device("cuda", 0),
        num_micro_batches=1, shape=SHAPE,
    )  # fmt: skip
    engine.load_weights(reader(initial_weights(spec)))
    rng = np.random.default_rng(0)
    graphs = []
    for step in range(50):
        lengths = [SHAPE.num_tokens] if step == 0 else [1 + step, 1, 1 + step % 7, 1 + step % 3]
        lengths = lengths if sum(lengths) <= SHAPE.num_tokens else [SHAPE.num_tokens - 1]
        documents = [Document(rng.integers(0, 300, n), rng.random(n) < 0.7) for n in lengths]
        documents[0] = Document(documents[0].tokens, np.ones(lengths[0], np.bool_))
        batch = micro_batch_of_documents(documents, SHAPE)
        engine.train_step([batch], batch.num_targets, 1e-3)
        graphs.append(int(counters["stats"]["unique_graphs"]))
    assert graphs[1:] == [graphs[1]] * 49


RESUME = """
import torch
from stagecoach.parallel.topology import Topology
from stagecoach_train.engine import Engine
from tests.distributed.training_cases import SHAPE, assemble, initial_weights, micro_batch, reader, tiny_spec
from tests.gpu.test_engine import config_of

spec = tiny_spec(num_layers=2)
config = config_of("bf16", moments_dtype="bf16", deterministic=True, recompute="selective")

def engine():
    made = Engine(config, spec, Topology(), torch.device("cuda", 0), num_micro_batches=2, shape=SHAPE)
    made.load_weights(reader(initial_weights(spec)))
    return made

def steps(made, numbers):
    losses = []
    for number in numbers:
        batches = [micro_batch(2 * number), micro_batch(2 * number + 1)]
        losses.append(made.train_step(batches, sum(b.num_targets for b in batches), 1e-3).loss_sum)
    return losses

straight = engine()
steps(straight, range(5))
half = assemble(spec, straight.state_pieces())
resumed = engine()
def read(name, kind, rows, cols):
    found = half[f"{name}/{kind}"][slice(*rows)]
    return found if cols is None else found[:, slice(*cols)]
resumed.load_state(read, num_updates=5)
assert steps(straight, range(5, 10)) == steps(resumed, range(5, 10))
ours, theirs = assemble(spec, straight.state_pieces()), assemble(spec, resumed.state_pieces())
assert all((ours[key].view("u1") == theirs[key].view("u1")).all() for key in ours)
print("same bits")
"""


def test_a_deterministic_run_resumes_bit_for_bit() -> None:
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run([sys.executable, "-c", RESUME], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("same bits")
