"""safetensors files byte for byte, against the safetensors package, and every kind of damage."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load as peer_load
from safetensors.numpy import save as peer_save

from stagecoach.errors import DataError
from stagecoach.formats.tensor_file import DTYPES, TensorFile, TensorToWrite, write_tensor_file
from tests.tiny_models import tensor_file_bytes

# One fp32 of 1.0 under the name "a": the header has 54 bytes and gets two spaces to end at a multiple of 8.
HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
LITERAL = b"\x38\0\0\0\0\0\0\0" + HEADER + b"  " + b"\0\0\x80\x3f"


def _file(tmp_path: Path, data: bytes) -> TensorFile:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    return TensorFile.open(path)


def _with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class TestBytes:
    def test_what_is_written(self) -> None:
        assert tensor_file_bytes({"a": np.ones(1, np.float32)}) == LITERAL

    def test_what_is_read(self, tmp_path: Path) -> None:
        opened = _file(tmp_path, LITERAL)
        assert (opened.names(), opened.shape("a"), opened.tensor("a").tolist()) == (["a"], (1,), [1.0])

    def test_bf16_is_two_bytes_little_endian(self) -> None:
        assert tensor_file_bytes({"a": np.array([1.5], ml_dtypes.bfloat16)})[-2:] == b"\xc0\x3f"

    def test_larger_items_come_first(self, tmp_path: Path) -> None:
        data = tensor_file_bytes({"small": np.zeros(3, np.int8), "large": np.zeros(2, np.float64)})
        starts = {name: stored.start for name, stored in _file(tmp_path, data).tensors.items()}
        assert starts["small"] - starts["large"] == 16
        assert starts["large"] % 8 == 0

    def test_metadata_stands_in_the_header(self, tmp_path: Path) -> None:
        opened = _file(tmp_path, tensor_file_bytes({"a": np.ones(1)}, {"format": "pt"}))
        assert opened.metadata == {"format": "pt"}


ARRAYS = {name: np.arange(6).reshape(2, 3).astype(DTYPES[name]) for name in ("F64", "F32", "F16", "I64", "U8", "BOOL")}


class TestPeer:
    def test_the_safetensors_package_reads_what_is_written(self) -> None:
        read = peer_load(tensor_file_bytes(ARRAYS))
        assert {name: array.tolist() for name, array in read.items()} == {
            name: array.tolist() for name, array in ARRAYS.items()
        }

    def test_what_the_safetensors_package_writes_is_read(self, tmp_path: Path) -> None:
        opened = _file(tmp_path, peer_save(ARRAYS, {"k": "v"}))
        assert {name: opened.tensor(name).tolist() for name in opened.names()} == {
            name: array.tolist() for name, array in ARRAYS.items()
        }


class TestViews:
    def test_a_rectangle_is_a_view(self, tmp_path: Path) -> None:
        opened = _file(tmp_path, tensor_file_bytes({"a": np.arange(12).reshape(3, 4)}))
        part = opened.rectangle("a", (1, 3), (1, 3))
        assert part.tolist() == [[5, 6], [9, 10]]
        assert not part.flags.owndata
        assert not part.flags.writeable

    def test_it_must_lie_inside(self, tmp_path: Path) -> None:
        opened = _file(tmp_path, tensor_file_bytes({"a": np.arange(12).reshape(3, 4)}))
        with pytest.raises(DataError, match=r"a: expected rows \(1, 4\)"):
            opened.rows("a", 1, 4)
        with pytest.raises(DataError, match="expected a tensor 'b'"):
            opened.tensor("b")


class TestDamage:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "got an empty one"),
            (b"\x01\0\0", "not safetensors, or truncated"),
            (LITERAL[:20], "not safetensors, or truncated"),
            (b"\xff" * 16, "not safetensors, or truncated"),
            (LITERAL[:-1], "truncated: expected 68 bytes, got 67"),
            (LITERAL + b"\0", "longer than its header says"),
            (_with_header(b"{"), "not valid JSON"),
            (_with_header(b"\xff\xfe"), "not valid JSON"),
            (_with_header([]), "expected a JSON object"),
            (_with_header(b'{"a":{},"a":{}}'), "a name is given twice"),
            (_with_header({"a": _tensor(dtype="F31")}, bytes(4)), "a: expected a dtype of .* got 'F31'"),
            (_with_header({"a": _tensor(shape=[-1])}, bytes(4)), "a: expected a shape"),
            (_with_header({"a": _tensor(shape=[2])}, bytes(4)), "a: expected 8 bytes for shape"),
            (_with_header({"a": _tensor(offsets=[4, 0])}, bytes(4)), "a: expected data_offsets in order"),
            (_with_header({"a": _tensor(offsets=["0", 4])}, bytes(4)), "two whole numbers"),
            (_with_header({"a": 1}), "two whole numbers"),
            *(
                (_with_header({"a": _tensor(dtype=dtype)}, bytes(4)), "a: expected a dtype of")
                for dtype in (["F32"], {"F32": 1}, None, 32, "")
            ),
            *(
                (_with_header({"a": _tensor(shape=shape)}, bytes(4)), "a: expected a shape")
                for shape in ("1", [1.0], [True], ["1"], None, {"1": 1}, [[1]], [math.nan], [1] * 65, [10**4000] * 2)
            ),
            (_with_header({"a": _tensor(shape=[0, 2**40, 2**40], offsets=[0, 0])}), "a: expected a shape"),
            *(
                (
                    _with_header({"a": _tensor(offsets=offsets)}, bytes(4)),
                    "a: expected (two whole )?(data_offsets|numbers)",
                )
                for offsets in (
                    [False, 4],
                    [0.0, 4.0],
                    [-4, 0],
                    [0, -4],
                    "04",
                    [0],
                    [0, 4, 8],
                    None,
                    [0, 10**4299],
                    [2**63] * 2,
                )
            ),
            (_with_header({"a": _tensor(offsets=[0, 2**62])}, bytes(4)), "a: expected 4 bytes for shape"),
            (
                _with_header({"a": _tensor(), "b": _tensor(offsets=[2, 6])}, bytes(6)),
                "b: overlaps the tensor before it",
            ),
            (_with_header({"a": _tensor(), "b": _tensor(offsets=[8, 12])}, bytes(12)), "b: leaves a hole before it"),
            (_with_header({"__metadata__": {"a": 1}}), "text values under __metadata__"),
        ],
    )
    def test_is_refused_by_name(self, tmp_path: Path, data: bytes, message: str) -> None:
        with pytest.raises(DataError, match=message) as error:
            _file(tmp_path, data)
        assert "x.safetensors" in str(error.value)
        assert len(str(error.value)) < 500 + len(str(tmp_path))


class TestWriting:
    def test_parts_follow_each_other(self) -> None:
        whole = np.arange(8, dtype=np.float32).reshape(4, 2)
        stream = BytesIO()
        write_tensor_file(stream, [TensorToWrite("a", whole.dtype, (4, 2), lambda: iter([whole[:1], whole[1:]]))])
        assert stream.getvalue() == tensor_file_bytes({"a": whole})

    def test_a_strided_view_is_written_in_row_order(self) -> None:
        whole = np.arange(8, dtype=np.float32).reshape(4, 2)
        assert tensor_file_bytes({"a": whole[:, :1]}) == tensor_file_bytes({"a": np.array([[0], [2], [4], [6]], "f4")})

    @pytest.mark.parametrize("made", [np.zeros((3, 2), "f4"), np.zeros((4, 3), "f4"), np.zeros((4, 2), "f8")])
    def test_another_tensor_than_announced_is_refused(self, made: Any) -> None:
        with pytest.raises(ValueError, match="a: announced"):
            write_tensor_file(BytesIO(), [TensorToWrite("a", np.dtype("f4"), (4, 2), lambda: made)])

    def test_a_name_given_twice_is_refused(self) -> None:
        tensor = TensorToWrite("a", np.dtype("f4"), (0,), lambda: np.zeros(0, "f4"))
        with pytest.raises(ValueError, match="a: given twice"):
            write_tensor_file(BytesIO(), [tensor, tensor])
