"""Fields of a recipe that say what to train from: name, model, data, convert, shard and pack, each with something wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from stagecoach.recipe.data import RowFormat
from tests.bad_inputs.recipe_fields import NAME, REMOVED, Rows, ids, refuse_field

FORMATS = get_args(RowFormat)
FIELDS: Rows = (
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
    ("model.source.num_layers", 10**9, "model.source.num_layers: expected a number of at most 10000, got '1000000000'"),
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
        f"data.sources.0.format: expected {', '.join(map(repr, FORMATS[:-1]))} or {FORMATS[-1]!r}, got 'csv'",
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
    ("convert.seed", 2**64, f"convert.seed: expected a number below {2**63}, got '{2**64}'"),
    ("model.source.seed", 2**64, f"model.source.seed: expected a number below {2**63}, got '{2**64}'"),
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
)


@pytest.mark.parametrize(("dotted", "value", "sentence"), FIELDS, ids=ids(FIELDS))
def test_a_field(dotted: str, value: Any, sentence: str, tmp_path: Path) -> None:
    refuse_field(dotted, value, sentence, tmp_path)
