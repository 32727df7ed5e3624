"""torch.save files without torch: the numbers are right, and nothing that a file asks for is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.formats.tensor_file import BFLOAT16
from stagecoach_convert.pickle_reader import Namespace, PickledTensor, TorchFile

torch = pytest.importorskip("torch")


def _saved(tmp_path: Path, content: Any) -> TorchFile:
    torch.save(content, tmp_path / "x.pt")
    return TorchFile(tmp_path / "x.pt")


def _archive(tmp_path: Path, program: bytes, **entries: bytes) -> Path:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for name, data in entries.items():
            archive.writestr(f"x/data/{name.removeprefix('_')}", data)
    return path


class TestNumbers:
    @pytest.mark.parametrize(
        "dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    )
    def test_every_dtype(self, tmp_path: Path, dtype: str) -> None:
        tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
        file = _saved(tmp_path, {"a": tensor})
        found = file.array(file.content["a"])
        assert found.dtype.name == dtype
        assert found.tolist() == tensor.tolist()

    def test_bfloat16(self, tmp_path: Path) -> None:
        file = _saved(tmp_path, {"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)})
        assert file.content["a"].dtype == BFLOAT16
        assert file.array(file.content["a"]).tolist() == [1.5, -2.0]

    def test_views_of_one_storage(self, tmp_path: Path) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        file = _saved(tmp_path, {"t": whole.t(), "part": whole[1:, 1:3], "empty": whole[:0]})
        assert file.array(file.content["t"]).tolist() == whole.t().tolist()
        assert file.array(file.content["part"]).tolist() == [[5, 6], [9, 10]]
        assert file.array(file.content["empty"]).shape == (0, 4)

    def test_a_parameter_is_its_tensor(self, tmp_path: Path) -> None:
        file = _saved(tmp_path, {"p": torch.nn.Parameter(torch.ones(2))})
        assert isinstance(file.content["p"], PickledTensor)

    def test_arrays_are_views_of_the_file(self, tmp_path: Path) -> None:
        file = _saved(tmp_path, {"a": torch.ones(2)})
        assert not file.array(file.content["a"]).flags.owndata
        assert not file.array(file.content["a"]).flags.writeable

    def test_plain_values_and_arguments(self, tmp_path: Path) -> None:
        arguments = argparse.Namespace(hidden_size=32, params_dtype=torch.float16, none=None, nested=[1, (2, "x")])
        content = _saved(tmp_path, {"args": arguments, "shape": torch.Size([2, 3])}).content
        assert isinstance(content["args"], Namespace)
        assert vars(content["args"]) == {
            "hidden_size": 32,
            "params_dtype": "torch.float16",
            "none": None,
            "nested": [1, (2, "x")],
        }
        assert content["shape"] == (2, 3)


class _Exploit:
    """Writes a file when it is unpickled by anything that trusts it."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


class TestRefusing:
    @pytest.mark.parametrize(
        ("call", "name"), [(os.system, "posix.system"), (eval, "builtins.eval"), (getattr, "builtins.getattr")]
    )
    def test_an_exploit_is_named_and_not_run(self, tmp_path: Path, call: Any, name: str) -> None:
        target = tmp_path / "owned"
        command = f"touch {target}" if call is os.system else f"open({str(target)!r}, 'w').write('x')"
        program = pickle.dumps({"model": _Exploit(call, *([command] if call is not getattr else [1, "x"]))})
        with pytest.raises(DataError, match=f"its pickle asks for {name}.* nothing of it was run"):
            TorchFile(_archive(tmp_path, program))
        assert not target.exists()

    def test_the_exploit_works_on_a_reader_that_trusts_it(self, tmp_path: Path) -> None:
        """Else the test above would prove nothing."""
        pickle.loads(pickle.dumps(_Exploit(os.system, f"touch {tmp_path / 'owned'}")))
        assert (tmp_path / "owned").exists()

    def test_a_name_inside_a_known_module_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"asks for torch\.load"):
            TorchFile(_archive(tmp_path, b"ctorch\nload\n(S'x'\ntR."))

    @pytest.mark.parametrize("program", [b"", b"\x80\x04", b"garbage", b"\x80\x04]\x94(h\x99e.", b"cos\n"])
    def test_a_damaged_pickle(self, tmp_path: Path, program: bytes) -> None:
        with pytest.raises(DataError, match=r"x\.pt"):
            TorchFile(_archive(tmp_path, program))

    @pytest.mark.parametrize("cut", [10, 200, 700])
    def test_a_truncated_file(self, tmp_path: Path, cut: int) -> None:
        torch.save({"a": torch.ones(100)}, tmp_path / "x.pt")
        data = (tmp_path / "x.pt").read_bytes()
        (tmp_path / "x.pt").write_bytes(data[:-cut])
        with pytest.raises(DataError, match=r"a zip archive, torch 1.6 or later"):
            TorchFile(tmp_path / "x.pt")

    @pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
    def test_a_zip_bomb(self, tmp_path: Path, name: str) -> None:
        """64 MiB in 64 KiB; torch compresses nothing, so nothing is unpacked."""
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            if name != "data.pkl":
                archive.writestr("x/data.pkl", b"N.")
            archive.writestr(f"x/{name}", b"l" * 2**26, zipfile.ZIP_DEFLATED)
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=rf"{name} .* stored as it is"):
                TorchFile(tmp_path / "x.pt")
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_the_old_form_is_named(self, tmp_path: Path) -> None:
        torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        with pytest.raises(DataError, match="save it again as safetensors"):
            TorchFile(tmp_path / "x.pt")

    @pytest.mark.parametrize(
        ("num_elements", "offset", "shape", "strides"),
        [(2, 0, (3,), (1,)), (2, 1, (2,), (1,)), (2, 0, (2, 2), (2, 1)), (2, 0, (2,), (5,)), (3, 0, (3,), (1,))],
    )
    def test_a_tensor_beyond_its_bytes(
        self, tmp_path: Path, num_elements: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI%d\ntQ" % num_elements
        sizes = b"I%d\n(%st(%st" % (
            offset,
            b"".join(b"I%d\n" % n for n in shape),
            b"".join(b"I%d\n" % n for n in strides),
        )
        program = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + sizes + b"I00\nNtR."
        file = TorchFile(_archive(tmp_path, program, _0=np.ones(2, np.float32).tobytes()))
        with pytest.raises(DataError, match=r"reaches beyond|plain bytes under data/0"):
            file.array(file.content)

    def test_negative_strides_are_refused(self, tmp_path: Path) -> None:
        program = (
            b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI2\ntQ"
            b"I1\n(I2\nt(I-1\ntI00\nNtR."
        )
        with pytest.raises(DataError, match="described in an unknown way"):
            TorchFile(_archive(tmp_path, program))
