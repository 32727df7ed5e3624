"""Archives of two builds of the same tree become the same bytes; a changed file changes its layer and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from images.archive import compressed_bytes, layer_files, normalise, read_image
from images.sbom import Package, packages_of

METADATA = "Metadata-Version: 2.4\nName: Some_Package\nVersion: 1.2\nLicense-Expression: MIT\n\nText.\n"
DPKG = (
    "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
)


def layer(files: dict[str, str], time: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname = len(text), time, f"builder{time}"
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def archive(path: Path, layers: list[dict[str, str]], time: int) -> Path:
    """A docker archive of ``layers`` as an engine writes it at ``time``."""
    tars = [layer(files, time) for files in layers]
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    config = {
        "created": f"at {time}",
        "config": {"User": "1"},
        "container": f"c{time}",
        "history": [{"created": f"at {time}"}],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    manifest = [{"Config": "c.json", "RepoTags": ["build/x:latest"], "Layers": names}]
    contents = {"c.json": json.dumps(config).encode(), **dict(zip(names, tars, strict=True))}
    with tarfile.open(path, "w") as tar:
        for name, data in {**contents, "manifest.json": json.dumps(manifest).encode()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


BASE = {"etc/debian_version": "12"}
CODE = {"opt/a.py": "a = 1\n", "opt/b.py": "b = 2\n"}


def test_two_builds_of_the_same_tree_give_the_same_archive(tmp_path: Path) -> None:
    for time in (1_000, 2_000):
        normalise(archive(tmp_path / "saved", [BASE, CODE], time), tmp_path / f"{time}.tar", "localhost/x", 0)
    assert (tmp_path / "1000.tar").read_bytes() == (tmp_path / "2000.tar").read_bytes()


def test_the_tag_is_the_head_of_the_image_id(tmp_path: Path) -> None:
    image = normalise(archive(tmp_path / "saved", [BASE], 5), tmp_path / "x.tar", "localhost/x", 86_400)
    assert image.name == f"localhost/x:{image.config_digest.removeprefix('sha256:')[:12]}"
    assert image.config["created"] == "1970-01-02T00:00:00Z"
    assert "container" not in image.config


def test_layers_keep_their_content_and_their_recorded_digest(tmp_path: Path) -> None:
    image = normalise(archive(tmp_path / "saved", [BASE, CODE], 5), tmp_path / "x.tar", "localhost/x", 0)
    assert read_image(tmp_path / "x.tar") == image
    for described, stream in layer_files(tmp_path / "x.tar"):
        data = stream.read()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == described.diff_id
        assert len(data) == described.size_bytes
    with tarfile.open(fileobj=io.BytesIO(data)) as last:
        assert [(m.name, m.mtime, m.uname) for m in last] == [("opt/a.py", 0, ""), ("opt/b.py", 0, "")]


def test_changed_code_leaves_the_layers_below_alone(tmp_path: Path) -> None:
    one = normalise(archive(tmp_path / "saved", [BASE, CODE], 5), tmp_path / "1.tar", "localhost/x", 0)
    changed = {**CODE, "opt/b.py": "b = 3\n"}
    two = normalise(archive(tmp_path / "saved", [BASE, changed], 6), tmp_path / "2.tar", "localhost/x", 0)
    assert one.layers[0] == two.layers[0]
    assert one.layers[1] != two.layers[1]
    skipped = list(layer_files(tmp_path / "2.tar", frozenset({one.layers[0].diff_id})))
    assert [described for described, _ in skipped] == [two.layers[1]]


def test_compressed_size_is_that_of_gzip() -> None:
    assert 20 < compressed_bytes(io.BytesIO(b"")) + 20 <= 40
    assert compressed_bytes(io.BytesIO(bytes(1_000_000))) < 1_200


def test_the_packages_of_an_image_are_those_it_holds(tmp_path: Path) -> None:
    base = {"./var/lib/dpkg/status": DPKG}
    stage = {"opt/venv/lib/some_package-1.2.dist-info/METADATA": METADATA, "opt/METADATA": "no package"}
    stage["opt/venv/lib/setuptools/_vendor/some_package-1.2.dist-info/METADATA"] = METADATA
    normalise(archive(tmp_path / "saved", [base, stage], 5), tmp_path / "x.tar", "localhost/x", 0)
    assert packages_of(tmp_path / "x.tar") == [
        Package("deb", "libc6", "2.36-9", "NOASSERTION"),
        Package("pypi", "some-package", "1.2", "MIT"),
        Package("vendored", "some-package", "1.2", "MIT"),
    ]
