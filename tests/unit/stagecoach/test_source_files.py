"""Which files of a repository are taken, on listings as they really occur."""

from __future__ import annotations

import pytest

from stagecoach.errors import DataError, MissingInputError
from stagecoach.source_files import data_files, document_files, matching, model_files, tokenizer_files

MISTRAL = [
    ".gitattributes",
    "README.md",
    "LICENSE.txt",
    "config.json",
    "consolidated.safetensors",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "training_args.bin",
]


def test_safetensors_are_taken_and_all_other_weights_left() -> None:
    assert model_files(MISTRAL, "m") == [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_bin_files_are_taken_where_there_is_no_safetensors() -> None:
    old = [path for path in MISTRAL if not path.endswith((".safetensors", ".safetensors.index.json"))]
    assert model_files(old, "m") == [
        "config.json",
        "generation_config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]


def test_one_whole_file_wins_over_parts() -> None:
    assert model_files([*MISTRAL, "model.safetensors"], "m") == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_a_missing_part_is_named() -> None:
    with pytest.raises(MissingInputError, match=r"m: expected 2 files of weights, missing model-00002-of-00002\.safe"):
        model_files([path for path in MISTRAL if path != "model-00002-of-00002.safetensors"], "m")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["model.safetensors"], r"expected a config\.json beside the weights, found model\.safetensors"),
        (["config.json", "consolidated.safetensors"], "expected weights"),
        ([], "found nothing"),
    ],
)
def test_an_incomplete_model_is_refused(paths: list[str], expected: str) -> None:
    with pytest.raises(MissingInputError, match=expected):
        model_files(paths, "m")


RANKS = [f"iter_0000152/mp_rank_{tp:02d}_{pp:03d}/model_rng.pt" for tp in (0, 1) for pp in (0, 1)]
ORIGINAL = [
    *RANKS,
    *(path.replace("model_rng.pt", "optim.pt") for path in RANKS),
    "config.json",
    "latest_checkpointed_iteration.txt",
    "tokenizer.model",
]


def test_rank_files_of_the_original_system_are_taken_without_their_optimizer() -> None:
    assert model_files(ORIGINAL, "m") == ["config.json", *RANKS, "latest_checkpointed_iteration.txt"]
    assert model_files([*ORIGINAL, "model.safetensors"], "m") == ["config.json", "model.safetensors"]


TRACKER = "latest_checkpointed_iteration.txt"


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        ([*ORIGINAL, "release/mp_rank_00/model_optim_rng.pt"], ["iter_0000152", "release"]),
        ([*RANKS, *(path.replace("152", "144") for path in RANKS)], ["iter_0000144", "iter_0000152"]),
        ([f"{parent}/{path}" for parent in "ab" for path in RANKS], ["a/iter_0000152", "b/iter_0000152"]),
        (["a/" + RANKS[0], "a/" + RANKS[1], "b/" + RANKS[2], "b/" + RANKS[3]], ["a/iter_0000152", "b/iter_0000152"]),
    ],
    ids=["a release beside it", "two iterations", "one iteration in two folders", "ranks of two folders"],
)
@pytest.mark.parametrize("tracker", [[], [TRACKER]])
def test_two_checkpoints_are_refused_whatever_a_tracker_says(
    paths: list[str], named: list[str], tracker: list[str]
) -> None:
    """A tracker is read when everything has been hashed and copied; so it does not choose."""
    found = {"config.json", *paths} - {TRACKER} | {*tracker}
    with pytest.raises(DataError) as error:
        model_files(found, "m")
    assert str(error.value) == (
        f"m: expected the checkpoint of one iteration, got {', '.join(named)}; name the files of one under files, such as"
        f' [config.json, "{named[-1]}/*"]'
    )
    chosen = matching(found, ["config.json", f"{named[-1]}/*"], "m")
    assert all(path == "config.json" or path.startswith(named[-1]) for path in model_files(chosen, "m"))


@pytest.mark.parametrize(
    "second",
    ["iter_0000152/mp_rank_00_000/model_optim_rng.pt", "iter_0000152/mp_rank_00/model_rng.pt"],
    ids=["two names", "two folders"],
)
def test_two_files_of_one_rank_are_refused(second: str) -> None:
    with pytest.raises(DataError) as error:
        model_files([*ORIGINAL, second], "m")
    first, last = sorted([second, RANKS[0]])
    assert str(error.value) == (
        f"m: expected one file of weights for tensor rank 0, stage 0, got {first}, {last}; take one out, or leave it out"
        " of files"
    )


@pytest.mark.parametrize(
    ("folder", "trackers"),
    [("", [TRACKER, f"old/{TRACKER}"]), ("a/", [f"a/{TRACKER}", TRACKER]), ("a/", [TRACKER]), ("", [f"b/{TRACKER}"])],
)
def test_a_tracker_that_lies_elsewhere_is_refused(folder: str, trackers: list[str]) -> None:
    with pytest.raises(DataError) as error:
        model_files(["config.json", *(folder + path for path in RANKS), *trackers], "m")
    assert str(error.value) == (
        f"m: expected {folder}{TRACKER} alone or none, got {', '.join(sorted(trackers))}; name the files of the checkpoint"
        f' under files, such as [config.json, "{folder}iter_0000152/*"]'
    )


def test_a_checkpoint_below_a_folder_is_taken_with_the_tracker_beside_it() -> None:
    paths = ["config.json", *("a/" + path for path in RANKS), f"a/{TRACKER}"]
    assert model_files(paths, "m") == sorted(paths)


def test_documents_and_tokenizer_files() -> None:
    assert document_files(MISTRAL) == ["LICENSE.txt", "README.md"]
    assert tokenizer_files(MISTRAL, "m") == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    with pytest.raises(MissingInputError, match=r"expected a tokenizer\.json or tokenizer\.model, found a"):
        tokenizer_files(["a"], "m")


def test_every_chat_file_of_a_folder_is_taken() -> None:
    assert data_files(["b.jsonl.gz", "a/x.parquet", "README.md", "dataset_infos.json"], "d") == [
        "a/x.parquet",
        "b.jsonl.gz",
    ]


def test_no_chat_file_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(MissingInputError, match=r"d: expected chat files .*, found README\.md"):
        data_files(["README.md"], "d")


def test_every_pattern_must_match_something() -> None:
    assert matching(["a/x.jsonl", "b.jsonl"], ["a/*", "*.jsonl"], "d") == ["a/x.jsonl", "b.jsonl"]
    with pytest.raises(MissingInputError, match=r"expected files that match 'c\*', found a"):
        matching(["a"], ["a", "c*"], "d")
