"""Builds the images with Docker, with reproducible layers, and locks each one's name by its content.

    python -m images.build [IMAGE ...] [--base-image NAME@sha256:...] [--push REGISTRY/PREFIX]

``build/images.lock.json`` maps each image to its reference. Without a registry the base image is made out of
Debian's packages and the references are local ones (``localhost/stagecoach-pack:<first digits of its id>``); with
``--push`` they are the registry's digests. An archive of each image lies in ``build/images`` for ``docker load``
or ``ctr images import``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from images.archive import Image, normalise
from images.engine import BuildError, Engine, debootstrap, docker_engine

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
LOCK_FILE = BUILD / "images.lock.json"
IMAGES = ("download", "convert", "shard", "pack", "train", "export", "pipeline")
DEBIAN_BASE = "localhost/stagecoach-base:bookworm"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
EPOCH_SECONDS = 1_767_225_600
"""2026-01-01, the time of every file in every layer; SOURCE_DATE_EPOCH changes it."""


def default_base() -> str:
    """The base image that the Dockerfiles name."""
    match = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "images/cpu.Dockerfile").read_text(), re.MULTILINE)
    if match is None:
        raise BuildError("images/cpu.Dockerfile names no BASE_IMAGE")
    return match[1]


def base_image(engine: Engine, wanted: str | None) -> str:
    """The base to build on: the wanted one, else the Dockerfile's, else one made of Debian's packages."""
    if wanted and wanted != "debootstrap":
        return wanted
    if wanted is None and (engine.ask("image", "inspect", default_base()) or engine.ask("pull", default_base())):
        return default_base()
    if engine.ask("image", "inspect", DEBIAN_BASE) is None:
        say("no registry answers: the base image is made with debootstrap")
        debootstrap(engine, DEBIAN_BASE, BUILD)
    return DEBIAN_BASE


def build(engine: Engine, image: str, base: str, epoch_seconds: int, revision: str) -> Image:
    """Build one image, normalise it, load it back under a tag of its content, and keep its archive."""
    arguments = {"BASE_IMAGE": base, "VERSION": version(), "REVISION": revision}
    if image == "train":
        dockerfile = "images/train.Dockerfile"
    else:
        dockerfile = "images/cpu.Dockerfile"
        arguments["PACKAGE"] = image
    if image == "pipeline":
        arguments |= {"SOURCE": "workflows", "MODULE": "stagecoach_workflows"}
    command: list[str | Path] = ["build", "--network=host", "--file", ROOT / dockerfile, "--tag", f"build/{image}"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    if CA_BUNDLE.is_file():
        command.append(f"--secret=id=ca,src={CA_BUNDLE}")
    engine.run(*command, ROOT)
    target = BUILD / "images" / f"{image}.tar"
    target.parent.mkdir(parents=True, exist_ok=True)
    saved = target.with_suffix(".saved")
    try:
        engine.run("save", f"build/{image}", "--output", saved)
        engine.run("image", "rm", f"build/{image}")
        return normalise(saved, target, f"localhost/stagecoach-{image}", epoch_seconds)
    finally:
        saved.unlink(missing_ok=True)


def version() -> str:
    """The version of every distribution of this tree."""
    project = tomllib.loads((ROOT / "shared/pyproject.toml").read_text())["project"]
    return str(project["version"])


def git_revision() -> str:
    """The commit that is built, with ``-dirty`` where the tree differs from it; ``unknown`` outside a repository."""
    result = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def push(engine: Engine, image: str, reference: str, registry: str) -> str:
    """Push an image and return its reference by the registry's digest."""
    remote = f"{registry}/stagecoach-{image}:{reference.rsplit(':', 1)[1]}"
    engine.run("tag", reference, remote)
    engine.run("push", "--quiet", remote)
    digests = json.loads(engine.ask("image", "inspect", remote, "--format", "{{json .RepoDigests}}") or "[]")
    found = [digest for digest in digests if digest.startswith(f"{registry}/stagecoach-{image}@")]
    if not found:
        raise BuildError(f"{remote} was pushed but the engine knows no digest of it")
    return str(found[0])


def say(text: str) -> None:
    """Tell the person who waits, at once."""
    print(text, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Build what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", help=f"of {', '.join(IMAGES)}; none = all")
    parser.add_argument("--base-image", help="another base, by digest; `debootstrap` makes one of Debian's packages")
    parser.add_argument(
        "--push", metavar="REGISTRY", help="push to REGISTRY/stagecoach-IMAGE and lock the digests there"
    )
    parser.add_argument(
        "--no-load", action="store_true", help="keep the archive only; a cluster needs no more, and it saves disk"
    )
    options = parser.parse_args(argv)
    wanted = options.images or list(IMAGES)
    if unknown := sorted(set(wanted) - set(IMAGES)):
        parser.error(f"unknown image {', '.join(unknown)}; there are {', '.join(IMAGES)}")
    epoch_seconds = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH_SECONDS))
    lock: dict[str, str] = json.loads(LOCK_FILE.read_text()) if LOCK_FILE.is_file() else {}
    try:
        with docker_engine(Path(os.environ.get("STAGECOACH_DOCKER_DATA", BUILD / "docker"))) as engine:
            base = base_image(engine, options.base_image)
            for image in wanted:
                start = time.monotonic()
                made = build(engine, image, base, epoch_seconds, git_revision())
                previous, lock[image] = lock.get(image), made.name
                if options.push or not options.no_load:
                    engine.run("load", "--quiet", "--input", BUILD / "images" / f"{image}.tar")
                if previous is not None and previous.startswith("localhost/") and previous != made.name:
                    engine.ask("image", "rm", previous)
                if options.push:
                    lock[image] = push(engine, image, lock[image], options.push)
                LOCK_FILE.write_text(json.dumps(dict(sorted(lock.items())), indent=2) + "\n")
                megabytes = sum(layer.size_bytes for layer in made.layers) / 1e6
                say(f"{lock[image]}  {megabytes:.0f} MB unpacked, {time.monotonic() - start:.0f} s")
    except BuildError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
