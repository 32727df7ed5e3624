"""Makes a small image archive out of single files, without a Docker engine: what the cluster's own images are made of.

make_image.py NAME:TAG OUT.tar [--user U] [--entrypoint JSON] [--link PATH=TARGET]... [SOURCE=PATH]...
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path


def add(
    archive: tarfile.TarFile, name: str, data: bytes = b"", mode: int = 0o644, kind: bytes = tarfile.REGTYPE
) -> None:
    """Add one member with these bytes; for a link the bytes are its target."""
    member = tarfile.TarInfo(name.lstrip("/"))
    member.mode, member.type = mode, kind
    if kind == tarfile.SYMTYPE:
        member.linkname = data.decode()
        archive.addfile(member)
    else:
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def make_layer(files: list[str], links: list[str]) -> bytes:
    """The tar of the image's one layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder, mode in (("tmp", 0o1777), ("etc", 0o755), ("bin", 0o755)):
            add(layer, folder, mode=mode, kind=tarfile.DIRTYPE)
        for source, path in (file.split("=", 1) for file in files):
            add(layer, path, Path(source).read_bytes(), 0o755 if os.access(source, os.X_OK) else 0o644)
        for path, target in (link.split("=", 1) for link in links):
            add(layer, path, target.encode(), 0o777, tarfile.SYMTYPE)
    return buffer.getvalue()


def main() -> None:
    """Write the archive that the command line describes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--user", default="")
    parser.add_argument("--entrypoint", default="null", type=json.loads)
    parser.add_argument("--link", action="append", default=[])
    options = parser.parse_intermixed_args()
    layer = make_layer(options.files, options.link)
    run = {"User": options.user, "Entrypoint": options.entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}
    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest()]
    config = {"architecture": "amd64", "os": "linux", "config": run, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config_bytes = json.dumps({**config, "history": [{}]}).encode()
    config_name = hashlib.sha256(config_bytes).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [options.name], "Layers": ["layer.tar"]}]
    with tarfile.open(options.out, "w") as archive:
        add(archive, config_name, config_bytes)
        add(archive, "layer.tar", layer)
        add(archive, "manifest.json", json.dumps(manifest).encode())


if __name__ == "__main__":
    main()
