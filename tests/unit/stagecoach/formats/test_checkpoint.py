"""The checkpoint index: literal JSON, any layout read by any other, and every way in which it can be
incomplete.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.errors import CorruptObjectError, DataError
from stagecoach.formats.checkpoint import (
    CheckpointIndex,
    CheckpointReader,
    Kind,
    StoredPiece,
    piece_tensor_name,
    rank_file_name,
)
from stagecoach.formats.tensor_file import Array, TensorFile
from stagecoach.parallel.slicing import RankLayout
from tests.tiny_models import checkpoint_files, cut, spec_of

TINY = spec_of("llama-tied", num_hidden_layers=1, hidden_size=2, head_dim=2, intermediate_size=2, vocab_size=4)
ARRAYS: dict[str, Array] = {
    tensor.name: np.arange(tensor.num_elements, dtype=np.float32).reshape(tensor.shape) + at / 16
    for at, tensor in enumerate(native_tensors(TINY))
}


def _entries() -> list[tuple[str, Kind, StoredPiece]]:
    return [
        (
            tensor.name,
            "weight",
            StoredPiece.whole(
                "r", tensor.name, (0, tensor.shape[0]), (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
            ),
        )
        for tensor in native_tensors(TINY)
    ]


def _reader(files: dict[str, bytes]) -> CheckpointReader:
    index = CheckpointIndex.from_bytes(files["index.json"])
    return CheckpointReader(index, lambda name: TensorFile(name, files[name]))


class TestNames:
    def test_files(self) -> None:
        assert rank_file_name(3) == "rank-00003.safetensors"

    def test_tensors(self) -> None:
        assert piece_tensor_name("a.b", "exp_avg", (0, 64), (32, 64)) == "exp_avg/a.b/0-64/32-64"
        assert piece_tensor_name("a.b", "weight", (0, 64), None) == "weight/a.b/0-64"


class TestIndex:
    def test_literal_json(self) -> None:
        content = json.loads(CheckpointIndex.build(TINY, _entries(), {"step": 7}).to_bytes())
        assert (content["format"], content["version"], content["state"]) == ("stagecoach-checkpoint", 1, {"step": 7})
        assert content["tensors"]["final_norm.weight"] == {
            "weight": [{"file": "r", "tensor": "final_norm.weight", "rows": [0, 2]}]
        }
        assert content["tensors"]["embedding.weight"] == {
            "weight": [{"file": "r", "tensor": "embedding.weight", "rows": [0, 4], "cols": [0, 2]}]
        }

    def test_local_places_are_written_where_they_do_not_begin_at_zero(self) -> None:
        piece = StoredPiece("f", "t", (4, 6), (0, 2), (1, 3), (2, 4))
        assert piece.to_json()["local_rows"] == [1, 3]
        assert StoredPiece.from_json(json.loads(json.dumps(piece.to_json()))) == piece

    def test_the_same_content_has_the_same_bytes(self) -> None:
        one, other = CheckpointIndex.build(TINY, _entries()), CheckpointIndex.build(TINY, reversed(_entries()))
        assert one.to_bytes() == other.to_bytes() == CheckpointIndex.from_bytes(one.to_bytes()).to_bytes()

    def test_a_missing_weight_is_named(self) -> None:
        with pytest.raises(DataError, match=r"final_norm.weight: expected a weight or a master, got nothing"):
            CheckpointIndex.build(TINY, [entry for entry in _entries() if entry[0] != "final_norm.weight"])

    def test_half_a_tensor_is_refused(self) -> None:
        half = StoredPiece.whole("r", "x", (0, 1), None)
        entries = [entry for entry in _entries() if entry[0] != "final_norm.weight"]
        with pytest.raises(DataError, match="expected 2 elements, its rectangles hold 1; a rank's file is missing"):
            CheckpointIndex.build(TINY, [*entries, ("final_norm.weight", "weight", half)])

    def test_a_tensor_stored_twice_is_refused(self) -> None:
        with pytest.raises(DataError, match="are stored twice"):
            CheckpointIndex.build(TINY, [*_entries(), _entries()[0]])

    def test_an_unknown_tensor_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"got 'head.weight' 'weight'"):
            CheckpointIndex.build(TINY, [*_entries(), ("head.weight", "weight", _entries()[0][2])])

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format":"stagecoach-checkpoint","version":2}'])
    def test_other_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(CorruptObjectError, match=r"index.json"):
            CheckpointIndex.from_bytes(data)


class TestReader:
    FILES = checkpoint_files(TINY, ARRAYS, RankLayout(2))
    SPLIT = checkpoint_files(TINY, ARRAYS, RankLayout(2), "split")

    def test_a_tied_embedding_is_stored_once_and_without_padding(self) -> None:
        stored = CheckpointIndex.from_bytes(self.FILES["index.json"]).tensors["embedding.weight"]["weight"]
        assert [(piece.rows, piece.cols) for piece in stored] == [((0, 4), (0, 2))]

    def test_one_piece_is_a_view(self) -> None:
        part = _reader(self.FILES).read("layers.0.attention.qkv.weight", rows=(0, 2))
        assert not part.flags.owndata

    def test_several_pieces_are_put_together(self) -> None:
        name = "layers.0.mlp.down.weight"
        assert _reader(self.FILES).read(name, cols=(0, 2)).tolist() == ARRAYS[name].tolist()

    def test_the_master_of_a_split_weight(self) -> None:
        name = "layers.0.attention.output.weight"
        reader = _reader(self.SPLIT)
        assert reader.dtype(name).name == "bfloat16"
        assert reader.read_master(name).tolist() == ARRAYS[name].tolist()

    def test_an_empty_rectangle(self) -> None:
        assert _reader(self.FILES).read("embedding.weight", rows=(1, 1)).shape == (0, 2)

    def test_outside_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"expected rows and columns inside \(4, 2\)"):
            _reader(self.FILES).read("embedding.weight", rows=(3, 5))

    def test_a_kind_that_is_not_stored_is_a_data_error_and_a_key_error(self) -> None:
        with pytest.raises(DataError, match=r"^checkpoint: embedding.weight: expected a stored exp_avg_sq, it has"):
            _reader(self.FILES).read("embedding.weight", "exp_avg_sq")
        with pytest.raises(KeyError):
            _reader(self.FILES).read("embedding.weight", "exp_avg_sq")

    def test_files_are_opened_when_they_are_needed(self) -> None:
        opened: list[str] = []

        def open_file(name: str) -> TensorFile:
            opened.append(name)
            return TensorFile(name, self.FILES[name])

        reader = CheckpointReader(CheckpointIndex.from_bytes(self.FILES["index.json"]), open_file)
        reader.read("layers.0.mlp.down.weight", cols=(1, 2))
        assert opened == ["rank-00001.safetensors"]


@st.composite
def requests(draw: st.DrawFn) -> tuple[ModelSpec, RankLayout, str, tuple[int, int], tuple[int, int]]:
    """A layout and any rectangle of any matrix."""
    spec = spec_of(draw(st.sampled_from(["mistral", "qwen2", "llama-tied"])))
    layout = RankLayout(draw(st.sampled_from([1, 2])), draw(st.integers(1, 3)))
    matrices = [tensor for tensor in native_tensors(spec) if len(tensor.shape) == 2]
    tensor = draw(st.sampled_from(matrices))
    spans = [sorted(draw(st.lists(st.integers(0, size), min_size=2, max_size=2))) for size in tensor.shape]
    return spec, layout, tensor.name, (spans[0][0], spans[0][1]), (spans[1][0], spans[1][1])


@settings(max_examples=40, deadline=None)
@given(requests())
def test_any_rectangle_of_any_layout(
    request: tuple[ModelSpec, RankLayout, str, tuple[int, int], tuple[int, int]],
) -> None:
    spec, layout, name, rows, cols = request
    arrays = {
        tensor.name: np.arange(tensor.num_elements, dtype=np.float32).reshape(tensor.shape)
        for tensor in native_tensors(spec)
    }
    reader = _reader(checkpoint_files(spec, arrays, layout))
    assert np.array_equal(reader.read(name, "weight", rows, cols), cut(arrays[name], rows, cols))


def test_a_checkpoint_half_uploaded_is_refused(tmp_path: Path) -> None:
    files = checkpoint_files(TINY, ARRAYS, RankLayout(2))
    path = tmp_path / "rank-00001.safetensors"
    path.write_bytes(files[path.name][:-3])
    reader = CheckpointReader(
        CheckpointIndex.from_bytes(files["index.json"]), lambda name: TensorFile.open(tmp_path / name)
    )
    with pytest.raises(DataError, match=r"rank-00001.safetensors: truncated"):
        reader.read("layers.0.mlp.down.weight", cols=(1, 2))
