"""Writes what is inside each built image as SPDX 2.3 JSON: the packages of Debian and Python, with licenses.

    python -m images.sbom [IMAGE ...]        reads build/images/IMAGE.tar, writes build/sbom/IMAGE.spdx.json

It reads the files of the image itself (dpkg's status and each ``METADATA``), not the lock: an image is what it holds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from images.archive import Image, layer_files, read_image
from images.build import BUILD, IMAGES

PYTHON_METADATA = re.compile(r"\.dist-info/METADATA$")
DEBIAN_STATUS = "var/lib/dpkg/status"


@dataclass(frozen=True, order=True, slots=True)
class Package:
    """One package that an image holds."""

    kind: str
    """``pypi``, ``vendored`` (a Python package that lies inside another one) or ``deb``."""
    name: str
    version: str
    license: str
    """What the package says of itself, as SPDX text; NOASSERTION where it says nothing that SPDX knows."""

    @property
    def purl(self) -> str:
        """The package's URL as vulnerability scanners look it up."""
        if self.kind == "deb":
            return f"pkg:deb/debian/{self.name}@{self.version}?distro=bookworm"
        return f"pkg:pypi/{self.name}@{self.version}"


def packages_of(path: Path) -> list[Package]:
    """Every package in an image archive, sorted; a file of a later layer replaces that of an earlier one."""
    found: dict[str, list[Package]] = {}
    for _, stream in layer_files(path):
        with tarfile.open(fileobj=stream, mode="r:") as layer:
            for member in layer:
                name = member.name.removeprefix("./")
                is_debian = name == DEBIAN_STATUS
                if not member.isreg() or not (is_debian or PYTHON_METADATA.search(name)):
                    continue
                content = layer.extractfile(member)
                text = content.read().decode("utf-8", "replace") if content else ""
                kind = "vendored" if "/_vendor/" in name else "pypi"
                found[name] = list(_debian(text)) if is_debian else [_python(text, kind)]
    return sorted({package for packages in found.values() for package in packages})


def _debian(status: str) -> Iterator[Package]:
    for paragraph in status.split("\n\n"):
        fields = HeaderParser().parsestr(paragraph.strip() + "\n")
        if str(fields.get("Status", "")).endswith(" installed"):
            yield Package("deb", str(fields["Package"]), str(fields["Version"]), "NOASSERTION")


def _python(metadata: str, kind: str) -> Package:
    fields = HeaderParser().parsestr(metadata)
    name = re.sub(r"[-_.]+", "-", str(fields["Name"])).lower()
    return Package(kind, name, str(fields["Version"]), str(fields.get("License-Expression", "NOASSERTION")))


def document(image: Image, packages: list[Package], version: str) -> dict[str, Any]:
    """The SPDX document of an image."""
    name = image.name.rsplit("/", 1)[-1].split(":")[0]
    root_id = "SPDXRef-image"
    entries = [
        {
            "SPDXID": f"SPDXRef-{package.kind}-{number}",
            "name": package.name,
            "versionInfo": package.version,
            "downloadLocation": "NOASSERTION",
            "licenseDeclared": package.license,
            "externalRefs": [
                {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": package.purl}
            ],
        }
        for number, package in enumerate(packages)
    ]
    root = {
        "SPDXID": root_id,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "checksums": [{"algorithm": "SHA256", "checksumValue": image.config_digest.removeprefix("sha256:")}],
    }
    contains = [
        {"spdxElementId": root_id, "relationshipType": "CONTAINS", "relatedSpdxElement": entry["SPDXID"]}
        for entry in entries
    ]
    describes = {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": root_id,
    }
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://stagecoach.invalid/sbom/{name}/{image.config_digest.removeprefix('sha256:')}",
        "creationInfo": {"created": image.config["created"], "creators": ["Tool: stagecoach images.sbom"]},
        "packages": [root, *entries],
        "relationships": [describes, *contains],
    }


def main(argv: list[str] | None = None) -> int:
    """Write the documents; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", help=f"of {', '.join(IMAGES)}; none = every one that is built")
    wanted = parser.parse_args(argv).images or [i for i in IMAGES if (BUILD / "images" / f"{i}.tar").is_file()]
    target = BUILD / "sbom"
    target.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        path = BUILD / "images" / f"{name}.tar"
        if not path.is_file():
            print(f"sbom: {path} is missing; build it first: make images IMAGES={name}", file=sys.stderr)
            return 1
        image = read_image(path)
        packages = packages_of(path)
        version = image.config["config"]["Labels"]["org.opencontainers.image.version"]
        (target / f"{name}.spdx.json").write_text(json.dumps(document(image, packages, version), indent=1) + "\n")
        print(f"{target / f'{name}.spdx.json'}  {len(packages)} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
