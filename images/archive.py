"""Docker archives (what ``docker save`` writes): made the same for the same content, and measured.

The engine stamps files with the time of the build, so two builds of the same tree differ. ``normalise`` gives
every file of every layer one time and no user names and writes the archive anew; the layers of two builds from
empty caches are then equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image."""

    diff_id: str
    """sha256 of the uncompressed tar."""
    size_bytes: int
    """Length of the uncompressed tar."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image as its archive holds it."""

    name: str
    """Repository and tag."""
    config_digest: str
    """sha256 of the config, what engines call the image id."""
    config: dict[str, Any]
    layers: tuple[Layer, ...]


def read_image(path: Path) -> Image:
    """Read the image that an archive holds, without its layers' content."""
    with tarfile.open(path, "r:") as archive:
        entry = _manifest(archive)
        config_bytes = _read(archive, entry["Config"])
        config: dict[str, Any] = json.loads(config_bytes)
        sizes = [archive.getmember(name).size for name in entry["Layers"]]
        diff_ids = config["rootfs"]["diff_ids"]
        layers = tuple(Layer(diff_id, size) for diff_id, size in zip(diff_ids, sizes, strict=True))
    return Image(entry["RepoTags"][0], f"sha256:{hashlib.sha256(config_bytes).hexdigest()}", config, layers)


def layer_files(path: Path, skip: frozenset[str] = frozenset()) -> Iterator[tuple[Layer, IO[bytes]]]:
    """Each layer with a stream of its tar, base first, but for those whose diff id is in ``skip``."""
    image = read_image(path)
    with tarfile.open(path, "r:") as archive:
        for layer, name in zip(image.layers, _manifest(archive)["Layers"], strict=True):
            stream = archive.extractfile(name)
            if layer.diff_id not in skip and stream is not None:
                yield layer, stream


def compressed_bytes(stream: IO[bytes]) -> int:
    """Length of a layer as a registry stores it (gzip, level 6)."""
    packer = zlib.compressobj(6, wbits=31)
    size_bytes = 0
    while chunk := stream.read(CHUNK_BYTES):
        size_bytes += len(packer.compress(chunk))
    return size_bytes + len(packer.flush())


def normalise(source: Path, target: Path, repository: str, epoch_seconds: int) -> Image:
    """Write the archive ``source`` to ``target`` with every time set, tagged with the head of its own digest.

    Returns:
        The image in ``target``. Its layers depend on content, modes, owners and order alone.
    """
    partial = target.with_suffix(".partial")
    with tarfile.open(source, "r:") as archive, tarfile.open(partial, "w:", format=tarfile.GNU_FORMAT) as written:
        entry = _manifest(archive)
        config: dict[str, Any] = json.loads(_read(archive, entry["Config"]))
        diff_ids, names = [], []
        for layer_name in entry["Layers"]:
            stream = archive.extractfile(layer_name)
            if stream is None:
                raise ValueError(f"{source}: layer {layer_name} is not a file")
            with tempfile.TemporaryFile(dir=target.parent) as rewritten:
                digest = _normalise_layer(stream, rewritten, epoch_seconds)
                diff_ids.append(f"sha256:{digest}")
                names.append(f"{digest}.tar")
                if names.count(names[-1]) == 1:
                    _add(written, names[-1], rewritten, rewritten.tell())
        config["rootfs"]["diff_ids"] = diff_ids
        created = _iso8601(epoch_seconds)
        config["created"] = created
        for step in config.get("history", []):
            step["created"] = created
        # Traces of the machine that built it; nothing that runs reads them.
        for field in ("container", "container_config", "docker_version"):
            config.pop(field, None)
        config_bytes = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
        config_digest = hashlib.sha256(config_bytes).hexdigest()
        config_name = f"{config_digest}.json"
        name = f"{repository}:{config_digest[:12]}"
        _add(written, config_name, io.BytesIO(config_bytes), len(config_bytes))
        manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": names}]).encode()
        _add(written, "manifest.json", io.BytesIO(manifest), len(manifest))
    partial.replace(target)
    return read_image(target)


def _normalise_layer(stream: IO[bytes], rewritten: IO[bytes], epoch_seconds: int) -> str:
    with (
        tarfile.open(fileobj=stream, mode="r:") as layer,
        tarfile.open(fileobj=rewritten, mode="w:", format=tarfile.GNU_FORMAT) as out,
    ):
        for member in layer:
            member.mtime = epoch_seconds
            member.uname = member.gname = ""
            member.pax_headers = {}
            out.addfile(member, layer.extractfile(member) if member.isreg() else None)
    end = rewritten.tell()
    rewritten.seek(0)
    digest = hashlib.sha256()
    while chunk := rewritten.read(CHUNK_BYTES):
        digest.update(chunk)
    assert rewritten.tell() == end
    return digest.hexdigest()


def _add(archive: tarfile.TarFile, name: str, stream: IO[bytes], size_bytes: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    stream.seek(0)
    archive.addfile(member, stream)


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    manifest: list[dict[str, Any]] = json.loads(_read(archive, "manifest.json"))
    return manifest[0]


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise ValueError(f"{archive.name!r}: {name} is not a file")
    return stream.read()


def _iso8601(epoch_seconds: int) -> str:
    return datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
