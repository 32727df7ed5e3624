"""shards.json and the reader over a layout's files."""

from __future__ import annotations

import json

import pytest

from stagecoach.errors import CorruptObjectError
from stagecoach.formats.checkpoint import CheckpointIndex
from stagecoach.formats.shards import Shards, shard_file_name, shards_as_pieces
from stagecoach.parallel.slicing import RankLayout
from tests.tiny_models import spec_of

SPEC = spec_of("mistral")
SHARDS = Shards(SPEC, RankLayout(2, 2), "BF16")


def test_file_names() -> None:
    assert shard_file_name(RankLayout(4), 3, 0) == "tp4-pp1/rank-tp03-pp00.safetensors"
    assert shard_file_name(RankLayout(1, 2, 3), 0, 1) == "tp1-pp2-vp3/rank-tp00-pp01.safetensors"


def test_literal_json() -> None:
    content = json.loads(SHARDS.to_bytes())
    assert (content["format"], content["version"], content["dtype"]) == ("stagecoach-shards", 1, "BF16")
    assert content["layout"] == {"tensor_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 1}
    # 320 tokens pad to 512 = 2 x 2 x 128
    assert (content["padded_vocab_size"], content["padding_rows"]) == (512, [320, 512])
    assert content["files"]["tp2-pp2/rank-tp01-pp00.safetensors"] == {"tp_rank": 1, "pp_rank": 0}


def test_there_and_back() -> None:
    assert Shards.from_bytes(SHARDS.to_bytes()) == SHARDS


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format":"stagecoach-shards","version":9}'])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptObjectError, match=r"shards.json"):
        Shards.from_bytes(data)


@pytest.mark.parametrize("first", RankLayout(2, 3).ranks)
def test_a_rank_finds_all_that_it_holds_in_its_own_file(first: tuple[int, int]) -> None:
    """Norms lie on every tensor rank and a tied embedding on both ends, so a rank must not read its peer's
    copy.
    """
    spec, layout = spec_of("llama-tied"), RankLayout(2, 3)
    index = CheckpointIndex.build(spec, shards_as_pieces(spec, layout, lambda tp, pp: f"{tp}-{pp}", first))
    own = f"{first[0]}-{first[1]}"
    files = {name: {piece.file for piece in kinds["weight"]} for name, kinds in index.tensors.items()}
    assert files[f"layers.{first[1]}.mlp_norm.weight"] == {own}
    if first[1] != 1:
        assert own in files["embedding.weight"]
