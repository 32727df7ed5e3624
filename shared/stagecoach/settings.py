"""The only reader of the process environment: everything that a deployment, not a recipe, decides."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from stagecoach.errors import ConfigError

Addressing = Literal["auto", "path", "virtual"]
Checksums = Literal["when_required", "when_supported"]
HUB_ADDRESS = "https://huggingface.co"
_SECRET_NAME = re.compile(
    r"(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?|ACCESS_KEY|PRIVATE_KEY)(?:_KEY|_ID)?$", re.IGNORECASE
)
_MIN_SECRET = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the environment says; made once at the start of a process and handed down."""

    s3_endpoint_url: str | None = None
    """Base address of an S3-compatible store; None is AWS. STAGECOACH_S3_ENDPOINT_URL, then AWS_ENDPOINT_URL_S3,
    AWS_ENDPOINT_URL."""
    s3_region: str | None = None
    """Region of the bucket. AWS_REGION, then AWS_DEFAULT_REGION."""
    s3_addressing: Addressing = "auto"
    """How the bucket is named in an address. STAGECOACH_S3_ADDRESSING."""
    s3_checksums: Checksums = "when_required"
    """``when_supported`` adds CRC trailers, which some stores other than AWS refuse. STAGECOACH_S3_CHECKSUMS."""
    s3_ca_bundle: Path | None = None
    """PEM file of certificate authorities for the store. STAGECOACH_S3_CA_BUNDLE, then AWS_CA_BUNDLE."""
    s3_sse_kms_key_id: str | None = None
    """KMS key that objects are encrypted with on the server. STAGECOACH_S3_SSE_KMS_KEY_ID."""
    hub_token: str | None = field(default=None, repr=False)
    """Access token of the Hugging Face Hub; never logged. HF_TOKEN."""
    hub_endpoint: str | None = None
    """Another server that speaks the Hub's API. HF_ENDPOINT."""
    hub_offline: bool = False
    """Refuse to ask the Hub for anything. HF_HUB_OFFLINE=1."""
    scratch_dir: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "stagecoach")
    """Where a stage may write temporary files; a volume in a container. STAGECOACH_SCRATCH, then TMPDIR/stagecoach."""
    artifacts_dir: Path | None = None
    """Where small files for the workflow engine go (manifest, report); None writes none. STAGECOACH_ARTIFACTS."""
    progress_file: Path | None = None
    """File that takes lines ``done/total``. ARGO_PROGRESS_FILE."""
    deadline_iso8601: str | None = None
    """Time at which the workflow engine will end this process. ARGO_DEADLINE."""
    fault_point: str | None = None
    """Name of a point at which the process group kills itself, for fault tests. STAGECOACH_FAULT."""
    rank: int | None = None
    """Rank of this process when another launcher (torchrun) started it. RANK."""
    local_rank: int | None = None
    """Rank on this machine under another launcher. LOCAL_RANK."""
    world_size: int | None = None
    """Number of ranks under another launcher. WORLD_SIZE."""
    local_world_size: int | None = None
    """Number of ranks on this machine under another launcher. LOCAL_WORLD_SIZE."""
    node_rank: int = 0
    """Index of this machine among the machines of one training. STAGECOACH_NODE_RANK, then JOB_COMPLETION_INDEX,
    SLURM_NODEID."""
    main_address: str | None = None
    """Host name of the machine with rank 0. MASTER_ADDR."""
    main_port: int | None = None
    """Port of the rendezvous on that machine. MASTER_PORT."""
    gloo_interfaces: tuple[str, ...] = ()
    """Network interfaces for ranks on CPU, joined by commas; empty takes that of the host name. GLOO_SOCKET_IFNAME."""
    git_revision: str | None = None
    """Revision that an image was built from; recorded in manifests. STAGECOACH_GIT_REVISION."""
    image_digest: str | None = None
    """Digest of the image that runs; recorded in manifests. STAGECOACH_IMAGE_DIGEST."""
    pod_name: str | None = None
    """Name of the pod that runs; recorded in task records. STAGECOACH_POD_NAME, then HOSTNAME."""

    @property
    def hub_address(self) -> str:
        """Base address of the Hub that is asked, without a slash at the end."""
        return (self.hub_endpoint or HUB_ADDRESS).rstrip("/")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment once.

        Args:
            environ: Variables to read instead of the process's own.

        Raises:
            ConfigError: A variable has a value outside its range; the sentence names variable, value and range.
        """
        read = _Reader(os.environ if environ is None else environ)
        ca_bundle = read.file("STAGECOACH_S3_CA_BUNDLE", "AWS_CA_BUNDLE")
        progress_file = read.text("ARGO_PROGRESS_FILE")
        artifacts_dir = read.text("STAGECOACH_ARTIFACTS")
        scratch = read.folder("STAGECOACH_SCRATCH")
        return cls(
            s3_endpoint_url=read.address("STAGECOACH_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            s3_region=read.text("AWS_REGION", "AWS_DEFAULT_REGION"),
            s3_addressing=cast(Addressing, read.one_of("STAGECOACH_S3_ADDRESSING", ("auto", "path", "virtual"))),
            s3_checksums=cast(Checksums, read.one_of("STAGECOACH_S3_CHECKSUMS", ("when_required", "when_supported"))),
            s3_ca_bundle=ca_bundle,
            s3_sse_kms_key_id=read.text("STAGECOACH_S3_SSE_KMS_KEY_ID"),
            hub_token=read.text("HF_TOKEN"),
            hub_endpoint=read.address("HF_ENDPOINT"),
            hub_offline=(read.text("HF_HUB_OFFLINE") or "0").lower() in ("1", "true", "yes", "on"),
            scratch_dir=scratch or Path(tempfile.gettempdir()) / "stagecoach",
            artifacts_dir=Path(artifacts_dir) if artifacts_dir else None,
            progress_file=Path(progress_file) if progress_file else None,
            deadline_iso8601=read.text("ARGO_DEADLINE"),
            fault_point=read.text("STAGECOACH_FAULT"),
            rank=read.number("RANK"),
            local_rank=read.number("LOCAL_RANK"),
            world_size=read.number("WORLD_SIZE"),
            local_world_size=read.number("LOCAL_WORLD_SIZE"),
            node_rank=read.number("STAGECOACH_NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_NODEID") or 0,
            main_address=read.text("MASTER_ADDR"),
            main_port=read.number("MASTER_PORT"),
            gloo_interfaces=tuple(filter(None, (read.text("GLOO_SOCKET_IFNAME") or "").split(","))),
            git_revision=read.text("STAGECOACH_GIT_REVISION"),
            image_digest=read.text("STAGECOACH_IMAGE_DIGEST"),
            pod_name=read.text("STAGECOACH_POD_NAME", "HOSTNAME"),
        )


def secret_values(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the values of all variables whose name says that they are secret, longest first, for hiding them in texts.

    Names of files that hold a secret are none themselves; values below six characters would hide ordinary words.
    """
    variables = os.environ if environ is None else environ
    found = {value for name, value in variables.items() if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET}
    return sorted(found, key=len, reverse=True)


def child_environ(**changes: str | None) -> dict[str, str]:
    """Return a copy of this process's environment for a child, with names set, or removed where the value is None."""
    environ = dict(os.environ)
    for name, value in changes.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ


def set_default_variable(name: str, value: str) -> None:
    """Set a variable of this process that a native library reads, unless it is set."""
    os.environ.setdefault(name, value)


class _Reader:
    """Typed look-ups in an environment; the first name that is set and not empty wins."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, *names: str) -> str | None:
        return self._first(names)[1]

    def _first(self, names: tuple[str, ...]) -> tuple[str, str | None]:
        name = next((name for name in names if self._environ.get(name)), names[0])
        return name, self._environ.get(name) or None

    def address(self, *names: str) -> str | None:
        """Read the base address of a server; credentials do not belong there, they would be in every message."""
        name, text = self._first(names)
        if text is None:
            return None
        found = re.fullmatch(r"https?://(?P<user>[^/@]*@)?[^/@\s:?#]+(?::\d+)?(?:/[^\s?#]*)?", text)
        if found is None or found["user"]:
            shown = re.sub(r"//[^/]*@", "//***@", text)[:200]
            raise ConfigError(
                f"environment variable {name}: expected an address such as https://host:8333 without credentials, got"
                f" {shown!r}; correct it"
            )
        return text

    def file(self, *names: str) -> Path | None:
        """Read the path of a file that must be there."""
        name, text = self._first(names)
        if text is not None and not Path(text).is_file():
            raise ConfigError(
                f"environment variable {name}: expected a file, found none at {text!r}; unset or correct it"
            )
        return Path(text) if text else None

    def folder(self, *names: str) -> Path | None:
        """Read the path of a folder that is there or can be made."""
        name, text = self._first(names)
        if text is not None and Path(text).exists() and not Path(text).is_dir():
            raise ConfigError(f"environment variable {name}: expected a folder, {text!r} is none; unset or correct it")
        return Path(text) if text else None

    def number(self, *names: str) -> int | None:
        text = self.text(*names)
        if text is None:
            return None
        if not text.isdecimal():
            raise ConfigError(
                f"environment variable {names[0]}: expected a whole number >= 0, got {text!r}; unset or correct it"
            )
        return int(text)

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        text = self.text(name) or allowed[0]
        if text not in allowed:
            raise ConfigError(f"environment variable {name}: expected one of {', '.join(allowed)}, got {text!r}")
        return text
