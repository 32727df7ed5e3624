"""What 8-bit products cost in quality: the same training in bf16 from three seeds and in fp8 from one of them.

    python -m benchmarks.fp8_quality [--steps 150] [--small]

A Mistral-shaped model learns the bytes of the demo's conversations; every training gets the same documents in the same
order. Compared are the mean training loss of the last tenth of the steps and the lowest held-out loss on the way. Writes
``results/fp8-quality.json``, closes with one line of ``key=value`` figures and exits 1 when fp8 is further from bf16
of its seed than the bf16 trainings are from each other.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import stagecoach
from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.batch import Document, MicroBatch, MicroBatchShape, micro_batch_of_documents
from stagecoach_train.engine import Engine

HERE = Path(__file__).parent
HELD_OUT_EVERY = 8
ACCUMULATE = 2
WARMUP_STEPS = 15
LR = 1e-3


def spec_of(*, small: bool) -> ModelSpec:
    """Return the shapes: 115 million parameters, or a toy for rehearsals."""
    dims: dict[str, Any] = {"num_layers": 8, "hidden_size": 1024, "intermediate_size": 3584, "num_heads": 8}
    if small:
        dims = {"num_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2}
    heads = {"num_kv_heads": dims["num_heads"] // 2, "head_dim": dims["hidden_size"] // dims["num_heads"]}
    return ModelSpec(family="mistral", vocab_size=256, norm_eps=1e-5, rope_theta=10_000.0, **dims, **heads)


def conversations(shape: MicroBatchShape) -> list[Document]:
    """Return the demo's conversations as bytes, one document each, every byte trained."""
    lines = (Path(stagecoach.__file__).parent / "demo" / "chat.jsonl").read_text().splitlines()
    texts = ("\n".join(str(message.get("content")) for message in json.loads(line)["messages"]) for line in lines)
    tokens = (np.frombuffer(text.encode(), np.uint8)[: shape.num_tokens].astype(np.int64) for text in texts)
    return [Document(ids, np.ones(len(ids), np.bool_)) for ids in tokens]


def micro_batches(documents: list[Document], shape: MicroBatchShape) -> list[MicroBatch]:
    """Fill micro-batches with whole documents in the order given; the last one may have room."""
    found, waiting, free = [], list[Document](), shape.num_tokens
    for document in documents:
        if len(document.tokens) > free or len(waiting) == shape.num_documents - 1:  # padding counts as a document
            found.append(micro_batch_of_documents(waiting, shape))
            waiting, free = [], shape.num_tokens
        waiting.append(document)
        free -= len(document.tokens)
    return [*found, micro_batch_of_documents(waiting, shape)]


def engine_of(spec: ModelSpec, shape: MicroBatchShape, precision: str, seed: int) -> Engine:
    """Return a model with random weights of this seed."""
    config = TrainConfig.model_validate(
        {"steps": 1, "compute_dtype": "bf16", "moments_dtype": "fp32", "matmul_precision": precision}
    )
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    engine = Engine(config, spec, Topology(), device, num_micro_batches=ACCUMULATE, shape=shape)
    rng = np.random.default_rng(seed)
    weights = {
        tensor.name: np.ones(tensor.shape, np.float32)
        if "norm" in tensor.kind
        else rng.normal(0.0, 0.02, tensor.shape).astype(np.float32)
        for tensor in native_tensors(spec)
    }

    def read(name: str, rows: tuple[int, int], cols: tuple[int, int] | None) -> npt.NDArray[Any]:
        return weights[name][slice(*rows)] if cols is None else weights[name][slice(*rows), slice(*cols)]

    engine.load_weights(read)
    return engine


def train(precision: str, seed: int, steps: int, *, small: bool) -> dict[str, Any]:
    """Train once; returns the training losses and the held-out losses."""
    spec = spec_of(small=small)
    shape = MicroBatchShape(num_tokens=1024 if small else 4096, num_documents=32)
    documents = conversations(shape)
    train_documents = [document for i, document in enumerate(documents) if i % HELD_OUT_EVERY]
    heldout = micro_batches(documents[::HELD_OUT_EVERY], shape)
    engine = engine_of(spec, shape, precision, seed)
    rng = np.random.default_rng(5)
    queue: list[MicroBatch] = []
    losses, heldout_losses = [], []
    for step in range(steps):
        while len(queue) < ACCUMULATE:
            queue += micro_batches([train_documents[i] for i in rng.permutation(len(train_documents))], shape)
        batches, queue = queue[:ACCUMULATE], queue[ACCUMULATE:]
        targets = sum(batch.num_targets for batch in batches)
        lr = LR * min(1.0, (step + 1) / WARMUP_STEPS)
        losses.append(engine.train_step(batches, targets, lr).loss_sum / targets)
        if (step + 1) % max(1, steps // 30) == 0:
            results = [engine.evaluate(batch) for batch in heldout]
            heldout_losses.append(sum(r.loss_sum for r in results) / sum(r.num_targets for r in results))
    last = float(np.mean(losses[-max(1, steps // 10) :]))
    print(f"{precision} seed {seed}: last loss {last:.4f}, lowest held-out loss {min(heldout_losses):.4f}", flush=True)
    return {
        "precision": precision,
        "seed": seed,
        "losses": [round(loss, 4) for loss in losses],
        "heldout_losses": [round(loss, 4) for loss in heldout_losses],
        "last_loss": round(last, 4),
        "lowest_heldout_loss": round(min(heldout_losses), 4),
    }


def main() -> int:
    """Train, compare, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--small", action="store_true", help="toy model; also runs on a CPU, writes no result")
    flags = parser.parse_args()
    wide = [train("compute_dtype", seed, flags.steps, small=flags.small) for seed in range(3)]
    narrow = train("fp8_tensorwise", 0, flags.steps, small=flags.small)
    figures: dict[str, float] = {}
    for name in ("last_loss", "lowest_heldout_loss"):
        figures[f"{name}_bf16"], figures[f"{name}_fp8"] = wide[0][name], narrow[name]
        figures[f"{name}_gap_of_seeds"] = round(max(abs(a[name] - b[name]) for a, b in combinations(wide, 2)), 4)
        figures[f"{name}_gap_of_fp8"] = round(abs(narrow[name] - wide[0][name]), 4)
    if not flags.small:
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        result = {"card": card, "torch": torch.__version__, "figures": figures, "runs": [*wide, narrow]}
        (HERE / "results" / "fp8-quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(" ".join(f"{name}={value}" for name, value in figures.items()))
    gaps = ("last_loss", "lowest_heldout_loss")
    return 1 if any(figures[f"{name}_gap_of_fp8"] > figures[f"{name}_gap_of_seeds"] for name in gaps) else 0


if __name__ == "__main__":
    raise SystemExit(main())
