"""Recipes with one thing wrong: refused by ``stagecoach check`` with file, line, field, what was expected and what was found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import stagecoach_workflows
from tests.bad_inputs.refusals import command

MICRO = Path(stagecoach_workflows.__path__[0]) / "recipes/micro.yaml"
REMOVED = object()
NAME = (
    "expected 1 to 63 characters of a-z, 0-9, '.', '_', '-' that begin and end with a letter or digit and hold no '..'"
)

FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("name", "Micro", f"name: recipe name: {NAME}, got 'Micro'"),
    ("name", "a b", f"name: recipe name: {NAME}, got 'a b'"),
    ("name", "../x", f"name: recipe name: {NAME}, got '../x'"),
    ("name", "", f"name: recipe name: {NAME}, got ''"),
    (
        "name",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        f"name: recipe name: {NAME}, got 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'",
    ),
    ("name", 5, "name: expected a text, got '5'"),
    ("name", REMOVED, "name: missing; it has no default"),
    ("name", None, "name: expected a text, got nothing"),
    ("name", "-a", f"name: recipe name: {NAME}, got '-a'"),
    ("nonsense", 1, "nonsense: unknown field"),
    ("model", REMOVED, "model: missing; it has no default"),
    ("data", REMOVED, "data: missing; it has no default"),
    ("pack", REMOVED, "pack: missing; it has no default"),
    ("train", REMOVED, "train: missing; it has no default"),
    ("model", "release:", f"model: release name: {NAME}, got ''"),
    ("model", "hub:x", "model: expected a section, or release:NAME, got 'hub:x'"),
    ("model", "release:../x", f"model: release name: {NAME}, got '../x'"),
    ("model", 7, "model: expected a section with fields, got '7'"),
    ("train", [], "train: expected a section with fields, got a list of 0"),
    ("data", "chat", "data: expected a section with fields, got 'chat'"),
    ("model.name", "A", f"model.name: model name: {NAME}, got 'A'"),
    ("model.source", REMOVED, "model.source: missing; it has no default"),
    (
        "model.source.kind",
        "ftp",
        (
            "model.source: expected a source whose kind is 'hub', 'directory', 's3', 'seed', 'release', "
            "'export', got kind 'ftp'"
        ),
    ),
    (
        "model.source.kind",
        REMOVED,
        (
            "model.source: expected a source with a kind, got a section with seed, vocab_size, hidden_size, "
            "intermediate_size, num_layers, num_heads, num_kv_heads, sliding_window"
        ),
    ),
    ("model.source.num_layers", 0, "model.source.num_layers: expected a number above 0, got '0'"),
    (
        "model.source.num_heads",
        3,
        "model.source: hidden_size 32 over num_heads 3: expected an even whole number a head; change one of the two",
    ),
    (
        "model.source.num_kv_heads",
        3,
        "model.source: num_heads 4 is no multiple of num_kv_heads 3; change one of the two",
    ),
    ("model.source.hidden_size", -1, "model.source.hidden_size: expected a number above 0, got '-1'"),
    (
        "model.source.hidden_size",
        33,
        "model.source: hidden_size 33 over num_heads 4: expected an even whole number a head; change one of the two",
    ),
    ("model.source.seed", -1, "model.source.seed: expected a number of at least 0, got '-1'"),
    ("model.source.sliding_window", 0, "model.source.sliding_window: expected a number above 0, got '0'"),
    ("model.chat_format", "alpaca", "model.chat_format: expected 'chatml' or 'tokenizer', got 'alpaca'"),
    ("model.num_parameters", 0, "model.num_parameters: expected a number of at least 1, got '0'"),
    (
        "model.num_parameters",
        7000000000,
        (
            "model.num_parameters: the pods would be sized for 7,000,000,000 parameters, the model has 59,552: "
            "write num_parameters: 59552"
        ),
    ),
    (
        "model.source",
        {"kind": "hub", "repo": "a/b/c"},
        "model.source.repo: expected a Hub repository such as owner/name, got 'a/b/c'",
    ),
    (
        "model.source",
        {"kind": "hub", "repo": "../b"},
        "model.source.repo: expected a Hub repository such as owner/name, got '../b'",
    ),
    ("model.source", {"kind": "hub"}, "model.source.repo: missing; it has no default"),
    (
        "model.source",
        {"kind": "s3", "url": "http://x"},
        "model.source.url: expected an address such as s3://bucket/prefix, got 'http://x'",
    ),
    (
        "model.source",
        {"kind": "s3", "url": "s3://"},
        "model.source.url: expected an address such as s3://bucket/prefix, got 's3://'",
    ),
    (
        "model.source",
        {"kind": "s3", "url": "s3://key:secret@bucket/x"},
        "model.source.url: expected an address such as s3://bucket/prefix, got 's3://***@bucket/x'",
    ),
    ("model.source", {"kind": "directory", "path": ""}, "model.source.path: expected a text that is not empty, got ''"),
    (
        "model.source",
        {"kind": "embedded", "name": "demo-chat"},
        (
            "model.source: expected a source whose kind is 'hub', 'directory', 's3', 'seed', 'release', "
            "'export', got kind 'embedded'"
        ),
    ),
    ("model.source", {"kind": "release", "name": "A B"}, f"model.source.name: release name: {NAME}, got 'A B'"),
    (
        "model.source",
        {"kind": "export", "export": "packed/x/"},
        (
            "model.source.export: expected the folder of an export such as exports/name-0123456789abcdef0123/, "
            "got 'packed/x/'"
        ),
    ),
    (
        "model.source",
        {"kind": "export", "export": "exports/../x/"},
        (
            "model.source.export: expected the folder of an export such as exports/name-0123456789abcdef0123/, "
            "got 'exports/../x/'"
        ),
    ),
    (
        "model.tokenizer",
        {"kind": "embedded"},
        "model.tokenizer: expected a source whose kind is 'hub', 'directory', 's3', got kind 'embedded'",
    ),
    ("data.name", "a/b", f"data.name: data name: {NAME}, got 'a/b'"),
    ("data.sources", [], "data.sources: expected at least 1 item, got a list of 0"),
    ("data.sources", {}, "data.sources: expected a list, got a section with nothing"),
    ("data.sources.0.name", "X", f"data.sources.0.name: data source name: {NAME}, got 'X'"),
    ("data.sources.0.source", REMOVED, "data.sources.0.source: missing; it has no default"),
    (
        "data.sources.0.source",
        {"kind": "embedded", "name": "other"},
        "data.sources.0.source.name: expected 'demo-chat', got 'other'",
    ),
    (
        "data.sources.0.source",
        {"kind": "seed"},
        "a data source of kind 'seed': expected hub, directory, s3 or embedded",
    ),
    ("data.sources.0.rows", 0, "data.sources.0.rows: expected a number above 0, got '0'"),
    ("data.sources.0.rows", -5, "data.sources.0.rows: expected a number above 0, got '-5'"),
    ("data.sources.0.rows", 1.5, "data.sources.0.rows: expected a whole number, got '1.5'"),
    (
        "data.sources.0.rows_seed",
        4294967296,
        "data.sources.0.rows_seed: expected a number below 4294967296, got '4294967296'",
    ),
    ("data.sources.0.weight", 0, "data.sources.0.weight: expected a number above 0.0, got '0'"),
    ("data.sources.0.weight", 1001, "data.sources.0.weight: expected a number of at most 1000.0, got '1001'"),
    ("data.sources.0.weight", "nan", "data.sources.0.weight: expected a finite number, got 'nan'"),
    (
        "data.sources.0.format",
        "csv",
        (
            "data.sources.0.format: expected 'auto', 'messages', 'sharegpt', 'alpaca', 'prompt_completion', "
            "'input_output', 'openorca' or 'alternating', got 'csv'"
        ),
    ),
    (
        "data.sources.0.prepare",
        "magic",
        "data.sources.0.prepare: expected 'none', 'openorca_cot', 'sharegpt' or 'codeact', got 'magic'",
    ),
    ("data.sources.0.min_turns", -1, "data.sources.0.min_turns: expected a number of at least 0, got '-1'"),
    (
        "data.sources.0.roles",
        {"bot": "robot"},
        "data.sources.0.roles.bot: expected 'system', 'user', 'assistant' or 'tool', got 'robot'",
    ),
    ("data.sources.0.columns", ["a"], "data.sources.0.columns: expected a section with fields, got a list of 1"),
    ("data.sources.0.ignore_fields", 5, "data.sources.0.ignore_fields: expected a list, got '5'"),
    ("data.sources.0.extra", 1, "data.sources.0.extra: unknown field"),
    (
        "data.sources",
        [{"name": "a", "source": {"kind": "embedded"}}, {"name": "a", "source": {"kind": "embedded"}}],
        "data: expected distinct source names, got a more than once; rename one",
    ),
    ("data.on_bad_row", "skip", "data.on_bad_row: expected 'stop' or 'drop', got 'skip'"),
    ("data.max_bad_share", 1.1, "data.max_bad_share: expected a number of at most 1.0, got '1.1'"),
    ("data.remove_duplicates", "perhaps", "data.remove_duplicates: expected true or false, got 'perhaps'"),
    (
        "data.sources.0.source",
        {"kind": "release", "name": "x"},
        "a data source of kind 'release': expected hub, directory, s3 or embedded; correct the source",
    ),
    ("data.sources.0.source", {"kind": "embedded", "files": ["*"]}, "data.sources.0.source.files: unknown field"),
    ("convert.dtype", "int8", "convert.dtype: expected 'source', 'fp32' or 'bf16', got 'int8'"),
    ("convert.new_row_noise", 2, "convert.new_row_noise: expected a number of at most 1.0, got '2'"),
    ("convert.new_row_noise", -0.1, "convert.new_row_noise: expected a number of at least 0.0, got '-0.1'"),
    ("convert.seed", -1, "convert.seed: expected a number of at least 0, got '-1'"),
    ("convert.allow_non_finite", 3, "convert.allow_non_finite: expected true or false, got '3'"),
    ("convert.x", 3, "convert.x: unknown field"),
    ("shard.tensor_parallel", 0, "shard.tensor_parallel: expected a number above 0, got '0'"),
    ("shard.tensor_parallel", "two", "shard.tensor_parallel: expected a whole number, got 'two'"),
    ("pack.pack_tokens", 7, "pack.pack_tokens: expected a number of at least 8, got '7'"),
    ("pack.pack_tokens", 4194305, "pack.pack_tokens: expected a number of at most 4194304, got '4194305'"),
    ("pack.pack_tokens", REMOVED, "pack.pack_tokens: missing; it has no default"),
    ("pack.pack_tokens", True, "pack.pack_tokens: expected a number of at least 8, got 'True'"),
    ("pack.pack_tokens", "512 tokens", "pack.pack_tokens: expected a whole number, got '512 tokens'"),
    ("pack.too_long", REMOVED, "pack.too_long: missing; it has no default"),
    ("pack.too_long", "wrap", "pack.too_long: expected 'split', 'truncate', 'drop' or 'error', got 'wrap'"),
    ("pack.max_documents_per_pack", 0, "pack.max_documents_per_pack: expected a number above 0, got '0'"),
    ("pack.train_on", "nobody", "pack.train_on: expected 'assistant', 'user', 'all' or 'last', got 'nobody'"),
    ("pack.heldout_share", 1.0, "pack.heldout_share: expected a number below 1.0, got '1.0'"),
    ("pack.heldout_share", 0.1, "pack: give heldout_share or heldout_num, not both, got 0.1 and 4"),
    ("pack.heldout_num", -1, "pack.heldout_num: expected a number of at least 0, got '-1'"),
    (
        "pack.seed",
        9223372036854775808,
        "pack.seed: expected a number below 9223372036854775808, got '9223372036854775808'",
    ),
    ("pack.seed", -1, "pack.seed: expected a number of at least 0, got '-1'"),
    ("train.steps", 0, "train.steps: expected a number above 0, got '0'"),
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
"""A field of the micro recipe, what it is set to, and the sentence behind file and line."""

SOURCES: tuple[tuple[str, Any, str], ...] = (
    (
        "model.source",
        {"kind": "directory", "path": "/nonexistent/x"},
        "/nonexistent/x: expected a folder or file, found nothing; correct the source's path",
    ),
    (
        "model.source",
        {"kind": "release", "name": "nobody"},
        "release nobody: nothing has been promoted under this name in ",
    ),
    (
        "model.source",
        {"kind": "export", "export": "exports/x-0123456789abcdef0123/"},
        (
            "/store/exports/x-0123456789abcdef0123/: no finished output here (no manifest.json); run the stage "
            "that makes it"
        ),
    ),
    (
        "model.tokenizer",
        {"kind": "directory", "path": "/nonexistent"},
        "/nonexistent: expected a folder or file, found nothing; correct the source's path",
    ),
    (
        "data.sources.0.source",
        {"kind": "directory", "path": "/nonexistent/chat.jsonl"},
        "/nonexistent/chat.jsonl: expected a folder or file, found nothing; correct the source's path",
    ),
    (
        "data.sources.0.source",
        {"kind": "directory", "path": "/etc/hostname"},
        "/etc/hostname: expected chat files (.jsonl, .json or .parquet, also .gz or .zst), found hostname",
    ),
)
"""What is only known to be missing when somebody looks."""

TEXTS: tuple[tuple[str, bytes, str], ...] = (
    ("empty", b"", "expected a mapping with the sections model, data, pack, train, .., got nothing"),
    ("only a comment", b"# nothing\n", "got nothing"),
    ("a list", b"- a\n", "got sequence"),
    ("a word", b"hello", "got scalar"),
    ("unclosed", b"name: [", ":1: not valid YAML: expected the node content"),
    ("a tab", b"a:\n\tb: 1", ":2: not valid YAML: found character '\\t'"),
    ("a Python tag", b"a: !!python/object:os.system x", ":1: not valid YAML: could not determine a constructor"),
    ("a time", b"a: !!timestamp x", ":1: not valid YAML: could not determine a constructor"),
    ("a set", b"a: !!set {b}", ":1: not valid YAML: could not determine a constructor"),
    ("a bad bool", b"a: !!bool x", "not valid YAML: 'x'"),
    ("an alias", b"a: &a [1]\nb: [*a, *a]", ":2: not valid YAML: aliases (*name) are not allowed"),
    ("a bomb", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", ":2: not valid YAML: aliases"),
    ("large", b"x" * 2_000_000, "expected a recipe of at most 1 MiB, got more"),
    ("deep", b"[" * 10_000, "not valid YAML"),
    ("binary", bytes(range(256)), "not UTF-8 text"),
    ("UTF-16", "name: x".encode("utf-16"), "not UTF-8 text"),
    ("NUL", b"name: \0", "not valid YAML: unacceptable character #x0000"),
    ("a field twice", b"name: a\nname: b\n", ":2: name: given twice"),
    ("two documents", b"name: a\n---\nname: b\n", ":2: not valid YAML: but found another document"),
    ("a list as a name", b"[1]: 2\n", ":1: not valid YAML: found unhashable key"),
    ("cut JSON", b'{"name": "x"', ":1: not valid YAML"),
)


def put(recipe: dict[str, Any], dotted: str, value: Any) -> None:
    """Set or remove one field."""
    *path, last = (int(part) if part.isdecimal() else part for part in dotted.split("."))
    inside: Any = recipe
    for part in path:
        inside = inside.setdefault(part, {}) if isinstance(inside, dict) else inside[part]
    if value is REMOVED:
        del inside[last]
    else:
        inside[last] = value


def write(folder: Path, dotted: str, value: Any) -> Path:
    """Write the micro recipe with one other field."""
    recipe = yaml.safe_load(MICRO.read_text(encoding="utf-8"))
    put(recipe, dotted, value)
    file = folder / "bad.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def names(rows: tuple[tuple[str, Any, str], ...]) -> list[str]:
    return [f"{row[0]}={'removed' if row[1] is REMOVED else str(row[1])[:40]}" for row in rows]


@pytest.mark.parametrize(("dotted", "value", "sentence"), FIELDS, ids=names(FIELDS))
def test_a_field(dotted: str, value: Any, sentence: str, tmp_path: Path) -> None:
    file = write(tmp_path, dotted, value)
    done = command(tmp_path, "check", str(file), "--work", str(tmp_path / "work"))
    done.assert_refused(78, sentence)
    assert re.fullmatch(rf"(?:{re.escape(str(file))}:\d+: )?{re.escape(sentence)}", done.sentences[0])


@pytest.mark.parametrize(("dotted", "value", "sentence"), SOURCES, ids=names(SOURCES))
def test_a_source_that_is_not_there(dotted: str, value: Any, sentence: str, tmp_path: Path) -> None:
    file = write(tmp_path, dotted, value)
    command(tmp_path, "check", str(file), "--work", str(tmp_path / "work")).assert_refused(66, sentence)


@pytest.mark.parametrize(("content", "sentence"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_text_that_is_no_recipe(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    command(tmp_path, "check", str(file), "--work", str(tmp_path / "work")).assert_refused(78, str(file), sentence)


def test_several_mistakes_are_a_sentence_each(tmp_path: Path) -> None:
    file = write(tmp_path, "train.steps", "many")
    file.write_text(file.read_text(encoding="utf-8").replace("pack_tokens: 512", "pack_tokens: few"), encoding="utf-8")
    done = command(tmp_path, "check", str(file), "--work", str(tmp_path / "work"))
    assert (done.exit_code, [line.split(": ")[1] for line in done.sentences]) == (
        78,
        ["pack.pack_tokens", "train.steps"],
    )
