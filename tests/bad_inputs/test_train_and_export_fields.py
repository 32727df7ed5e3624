"""Fields of a recipe that say how to train and what to hand out, each with something wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.recipe_fields import NAME, Rows, ids, refuse_field

FIELDS: Rows = (
    ("train.steps", 0, "train.steps: expected a number above 0, got '0'"),
    ("train.steps", 2**63, f"train.steps: expected a number below {2**63}, got '{2**63}'"),
    ("train.packs_per_step", 10**400, f"train.packs_per_step: expected a number below {2**63}, got '1{'0' * 79}'"),
    ("train.micro_batch_packs", 2**64, f"train.micro_batch_packs: expected a number below {2**63}, got '{2**64}'"),
    ("train.steps", "many", "train.steps: expected a whole number, got 'many'"),
    ("train.epochs", 3, "train: both steps (8) and epochs (3) are given; remove one of them"),
    ("train.epochs", 0, "train.epochs: expected a number above 0.0, got '0'"),
    ("train.packs_per_step", 0, "train.packs_per_step: expected a number above 0, got '0'"),
    ("train.seed", -1, "train.seed: expected a number of at least 0, got '-1'"),
    ("train.lr", 0, "train.lr: expected a number above 0.0, got '0'"),
    ("train.lr", "fast", "train.lr: expected a number, got 'fast'"),
    ("train.lr", float("inf"), "train.lr: expected a number, got '.inf'"),
    ("train.min_lr", 1, "train: min_lr 1 is above lr 0.001; lower min_lr or raise lr"),
    ("train.min_lr", -1, "train.min_lr: expected a number of at least 0.0, got '-1'"),
    (
        "train.schedule",
        "step",
        "train.schedule: expected 'cosine', 'linear', 'constant', 'wsd' or 'inverse_square_root', got 'step'",
    ),
    ("train.warmup_steps", -1, "train.warmup_steps: expected a number of at least 0, got '-1'"),
    ("train.warmup_share", 0.1, "train: both warmup_steps and warmup_share are given; remove one of them"),
    ("train.warmup_share", 2, "train.warmup_share: expected a number of at most 1.0, got '2'"),
    ("train.decay_share", -1, "train.decay_share: expected a number of at least 0.0, got '-1'"),
    ("train.betas", [0.9], "train.betas.1: missing; it has no default"),
    ("train.betas", [0.9, 1.0], "train.betas.1: expected a number below 1.0, got '1.0'"),
    ("train.betas", 0.9, "train.betas: expected a list, got '0.9'"),
    ("train.eps", 0, "train.eps: expected a number above 0.0, got '0'"),
    ("train.weight_decay", -1, "train.weight_decay: expected a number of at least 0.0, got '-1'"),
    ("train.clip_norm", 0, "train.clip_norm: expected a number above 0.0, got '0'"),
    ("train.non_finite_step_budget", -1, "train.non_finite_step_budget: expected a number of at least 0, got '-1'"),
    ("train.compute_dtype", "int8", "train.compute_dtype: expected 'fp32', 'bf16' or 'fp64', got 'int8'"),
    ("train.moments_dtype", "fp64", "train: moments_dtype fp64 needs compute_dtype fp64; use fp32 or bf16"),
    ("train.layout", 4, "train.layout: expected a section with fields, got '4'"),
    ("train.layout.tensor_parallel", 0, "train.layout.tensor_parallel: expected a number above 0, got '0'"),
    (
        "train.layout.tensor_parallel",
        3,
        "tensor_parallel: expected one of 1, 2 (it must divide 2 key/value heads and an MLP of 64), got 3",
    ),
    (
        "train.layout.tensor_parallel",
        4,
        "tensor_parallel: expected one of 1, 2 (it must divide 2 key/value heads and an MLP of 64), got 4",
    ),
    (
        "train.layout.pipeline_parallel",
        3,
        "pipeline_parallel 3 x virtual_stages 1: expected at most 2 runs of layers (the model has 2 layers), got 3",
    ),
    (
        "train.layout.virtual_stages",
        2,
        (
            "train.layout: virtual_stages is 2 but pipeline_parallel is 1: interleaving needs at least two "
            "pipeline ranks; set virtual_stages to 1 or pipeline_parallel to 2 or more"
        ),
    ),
    (
        "train.layout.zero_bubble",
        True,
        "train.layout: zero_bubble is set but pipeline_parallel is 1: there is no bubble; remove zero_bubble",
    ),
    (
        "train.layout.data_parallel_kind",
        "ddp",
        "train.layout.data_parallel_kind: expected 'sharded_optimizer' or 'fsdp', got 'ddp'",
    ),
    ("train.layout.sharding", 1, "train.layout.sharding: unknown field"),
    ("train.nodes", 0, "train.nodes: expected a number above 0, got '0'"),
    ("train.nodes", 3, "train: 1 ranks cannot be divided evenly over 3 nodes"),
    ("train.gpus", -1, "train.gpus: expected a number of at least 0, got '-1'"),
    (
        "train.gpus",
        3,
        (
            "train: the layout has 1 ranks (data 1 x tensor 1 x pipeline 1) but nodes x gpus is 3; make the two "
            "equal, for example by data_parallel"
        ),
    ),
    ("train.threads_per_rank", 0, "train.threads_per_rank: expected a number above 0, got '0'"),
    ("train.gpu_memory_gib", 0, "train.gpu_memory_gib: expected a number above 0.0, got '0'"),
    ("train.micro_batch_packs", 0, "train.micro_batch_packs: expected a number above 0 or 'auto', got '0'"),
    ("train.micro_batch_packs", "some", "train.micro_batch_packs: expected a whole number or 'auto', got 'some'"),
    (
        "train.recompute",
        "all",
        "train.recompute: expected 'none', 'selective', 'selective_mlp' or 'full' or 'auto' or a list, got 'all'",
    ),
    (
        "train.recompute",
        ["none"],
        "train.recompute: expected one mode, or one for each of the model's 2 layers, got a list of 1",
    ),
    (
        "train.recompute",
        ["none", "none", "none"],
        "train.recompute: expected one mode, or one for each of the model's 2 layers, got a list of 3",
    ),
    ("train.attention", "flash", "train.attention: expected 'auto', 'sdpa', 'varlen' or 'fa4', got 'flash'"),
    ("train.head_chunk_tokens", 0, "train.head_chunk_tokens: expected a number above 0, got '0'"),
    (
        "train.communication_timeout_seconds",
        0,
        "train.communication_timeout_seconds: expected a number above 0, got '0'",
    ),
    ("train.evaluate_every_steps", 0, "train.evaluate_every_steps: expected a number above 0 or 'epoch', got '0'"),
    ("train.save_every_steps", "daily", "train.save_every_steps: expected a whole number or 'epoch', got 'daily'"),
    ("train.keep_last", 0, "train.keep_last: expected a number above 0, got '0'"),
    ("train.keep_every_steps", 0, "train.keep_every_steps: expected a number above 0, got '0'"),
    ("train.wall_clock_budget_seconds", 0, "train.wall_clock_budget_seconds: expected a number above 0.0, got '0'"),
    ("train.log_every_steps", 0, "train.log_every_steps: expected a number above 0, got '0'"),
    ("train.prompts", "one", "train.prompts: expected a list, got 'one'"),
    ("train.tasks", [{"prompt": "x"}], "train.tasks.0.expected: missing; it has no default"),
    ("train.tasks", ["x"], "train.tasks.0: expected a section with fields, got 'x'"),
    ("train.answer_max_tokens", 0, "train.answer_max_tokens: expected a number above 0, got '0'"),
    ("train.peak_lr", 0.001, "train.peak_lr: unknown field"),
    ("export.dtype", "int4", "export.dtype: expected 'bf16', 'fp16' or 'fp32', got 'int4'"),
    ("export.iteration", "first", "export.iteration: expected 'last' or 'best' or a whole number, got 'first'"),
    ("export.iteration", -1, "export.iteration: expected 'last' or 'best' or a number of at least 0, got '-1'"),
    ("export.max_file_size_bytes", 0, "export.max_file_size_bytes: expected a number above 0, got '0'"),
    ("export.release", "A/B", f"export.release: release name: {NAME}, got 'A/B'"),
    ("export.gate.max_loss_increase", -1, "export.gate.max_loss_increase: expected a number of at least 0.0, got '-1'"),
    ("export.gate.min_common_documents", 0, "export.gate.min_common_documents: expected a number above 0, got '0'"),
    ("export.gate.min_right_share", 2, "export.gate.min_right_share: expected a number of at most 1.0, got '2'"),
    ("export.push", {}, "export.push.repo: missing; it has no default"),
    (
        "export.push",
        {"repo": "a/b/c"},
        "export.push.repo: expected a Hub repository such as my-team/my-model, got 'a/b/c'",
    ),
    (
        "export.push",
        {"repo": "a--b/c"},
        "export.push.repo: expected a Hub repository such as my-team/my-model, got 'a--b/c'",
    ),
    ("export.push", "a/b", "export.push: expected a section with fields, got 'a/b'"),
    ("export.gate", None, "export.gate: expected a section with fields, got nothing"),
)


@pytest.mark.parametrize(("dotted", "value", "sentence"), FIELDS, ids=ids(FIELDS))
def test_a_field(dotted: str, value: Any, sentence: str, tmp_path: Path) -> None:
    refuse_field(dotted, value, sentence, tmp_path)
