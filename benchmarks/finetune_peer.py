"""Fine-tune a real model a second time, with transformers and torch's AdamW, on the packs and the schedule of a finished run.

    python -m benchmarks.finetune_peer --store DIR --run ID --model HUB_DIRECTORY --result FILE

Both end models are then judged by the same code: transformers, fp32, every held-out document alone. Exits 1 if their
held-out losses differ by more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from stagecoach.formats.packed import PackedSplit
from stagecoach.metrics_file import read_metrics
from stagecoach.outputs import open_input
from stagecoach.plan_file import Plan, read_plan
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.local import LocalStore
from stagecoach_train.data import DataOrder
from stagecoach_train.schedule import learning_rate

LARGEST_DIFFERENCE = 0.01
MAX_BATCH_TOKENS = 16_384
QUESTIONS = ("What is the capital of France?", "Write a Python function that reverses a string.")
Document = tuple[torch.Tensor, torch.Tensor]
"""Token ids and whether each is a target, one document."""


def documents_of(split: PackedSplit, packs: list[int]) -> list[Document]:
    """Return every document of some packs that trains anything."""
    found = []
    for index in packs:
        pack = split.pack(index)
        edges = [*(int(start) for start in pack.document_starts), int(pack.num_document_tokens)]
        for start, end in pairwise(edges):
            tokens, trained = torch.from_numpy(pack.tokens[start:end]), torch.from_numpy(pack.trained[start:end])
            if end > start and trained.any():
                found.append((tokens.long(), trained.bool()))
    return found


def batches_of(documents: list[Document]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded token ids and labels (-100 where not trained), longest documents first."""
    left = sorted(documents, key=lambda document: -len(document[0]))
    while left:
        count = max(1, MAX_BATCH_TOKENS // len(left[0][0]))
        taken, left = left[:count], left[count:]
        ids = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in taken], batch_first=True)
        labels = [torch.where(trained, tokens, -100) for tokens, trained in taken]
        yield ids, torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)


def loss_sum(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the targets' losses. Padding stands at the end, where causal attention never looks at it from a target."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def train(model: Any, split: PackedSplit, config: TrainConfig, device: torch.device) -> list[float]:
    """Train in place as the recipe says; return the loss of each step."""
    order = DataOrder.of(config, split.num_packs)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device.type == "cuda")
    losses = []
    for step in range(order.num_steps):
        documents = documents_of(split, order.packs_of_step(step))
        num_targets = sum(int(trained.sum()) for _, trained in documents)
        total = 0.0
        for ids, labels in batches_of(documents):
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_sum(model, ids.to(device), labels.to(device)) / num_targets
            torch.autograd.backward(loss)
            total += loss.item()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, order.num_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(total, 5))
    return losses


@torch.inference_mode()
def judge(model: Any, tokenizer: Any, split: PackedSplit, device: torch.device) -> dict[str, Any]:
    """Held-out loss in fp32, and the greedy answers to two questions."""
    documents = documents_of(split, list(range(split.num_packs)))
    sums = [loss_sum(model, ids.to(device), labels.to(device)).item() for ids, labels in batches_of(documents)]
    answers = {}
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(device)
        ids = model.generate(**prompt, max_new_tokens=96, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answers[question] = tokenizer.decode(ids)
    return {
        "heldout_loss": round(sum(sums) / sum(int(trained.sum()) for _, trained in documents), 5),
        "answers": answers,
    }


def exported(store: LocalStore, plan: Plan, work: Path) -> Path:
    """Lay the run's export out as a Hub directory."""
    source = open_input(store, plan.task("export").output, work / "scratch")
    folder = work / "export"
    folder.mkdir()
    for name in source.names():
        (folder / name).symlink_to(source.path(name))
    return folder


def main() -> int:
    """Train the peer, judge three models, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--model", type=Path, required=True, help="the Hub directory that the run started from")
    parser.add_argument("--result", type=Path, required=True)
    flags = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = LocalStore(flags.store)
    plan = read_plan(store, flags.run)
    config = TrainConfig.model_validate(plan.task("train").config)
    with tempfile.TemporaryDirectory() as work:
        packed = open_input(store, plan.task("pack").output, Path(work) / "packed")
        training, heldout = PackedSplit.open(packed, "train"), PackedSplit.open(packed, "heldout")
        folder = exported(store, plan, Path(work))
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)

        def load(place: Path) -> Any:
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
            return model.to(device)

        result: dict[str, Any] = {"before": judge(load(flags.model), tokenizer, heldout, device)}
        result["ours"] = judge(load(folder), tokenizer, heldout, device)
        peer = load(flags.model)
        start = time.perf_counter()
        losses = train(peer, training, config, device)
        seconds = time.perf_counter() - start
        result["peer"] = {**judge(peer, tokenizer, heldout, device), "seconds": round(seconds, 1), "losses": losses}
    steps = [record for record in read_metrics(store, plan.task("train").output) if record["kind"] == "step"]
    result["ours"] |= {
        "seconds": round(sum(record["seconds"] for record in steps), 1),
        "losses": [round(record["loss"], 5) for record in steps],
    }
    difference = result["ours"]["heldout_loss"] / result["peer"]["heldout_loss"] - 1
    result |= {
        "difference": round(difference, 5),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "train": plan.task("train").config,
    }
    flags.result.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"steps={len(losses)} before={result['before']['heldout_loss']} ours={result['ours']['heldout_loss']} "
        f"peer={result['peer']['heldout_loss']} difference={difference:.4%} "
        f"ours_seconds={result['ours']['seconds']} peer_seconds={seconds:.1f}"
    )
    return int(abs(difference) > LARGEST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
