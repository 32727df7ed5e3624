"""Finds an export by what people call it and lays its checked files into one folder, as a download of it would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stagecoach.errors import ConfigError, DataError, MissingInputError
from stagecoach.outputs import Input, open_input
from stagecoach.paths import validate_name
from stagecoach.releases import released_export
from stagecoach.settings import Settings
from stagecoach.storage.open import open_existing_store

_FORMS = "a directory, the address of an export in a store (.../exports/NAME-KEY) or release:NAME"
_EXPORT = re.compile(r"(?:(?P<store>.*)/)?(?P<prefix>exports/(?P<name>[^/]+)-[0-9a-f]{20})/?")
_NEEDED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A Hub directory on this machine and what a server has to know of it."""

    name: str
    """What clients call it."""
    folder: Path
    """The Hub directory; its last part is ``name``, because one server calls a model by its folder."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer, as its generation_config.json lists them."""
    num_heads: int
    num_kv_heads: int
    speaks_tools: bool
    """Its chat template renders tool calls in the Hermes form."""


@contextmanager
def served_model(export: str, store: str, name: str, settings: Settings) -> Iterator[ServedModel]:
    """Lay an export out for as long as the context lasts; nothing of it is copied from a directory.

    Args:
        export: A directory, ``[STORE/]exports/NAME-KEY`` or ``release:NAME``.
        store: Store of releases, and of an export without an address.
        name: What clients call it; empty takes the name of the release, output or folder.
        settings: For the store, and where scratch files go.

    Raises:
        ConfigError: It is none of these forms, or the name is not valid.
        MissingInputError: There is no finished export, or a file is missing.
        DataError: A file is damaged, or the export names no token that ends an answer.
    """
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="serve-", dir=settings.scratch_dir) as scratch:
        files, own_name = _files(export, store, settings, Path(scratch) / "objects")
        chosen = validate_name(name, "--name") if name else own_name
        folder = Path(scratch) / chosen
        for file_name, file in files.items():
            link = folder / file_name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        yield read_model(folder, chosen, export)


def read_model(folder: Path, name: str, export: str) -> ServedModel:
    """Return what the files of a Hub directory say.

    Raises:
        MissingInputError: A file that a server needs is not there.
        DataError: A file is no JSON object, or no token ends an answer.
    """
    missing = [file for file in _NEEDED if not (folder / file).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise MissingInputError(
            f"{export}: expected a Hub directory with {', '.join(_NEEDED)} and *.safetensors,"
            f" {missing[0] if missing else '*.safetensors'} is not there; give {_FORMS}"
        )
    config, generation = (_object(folder / file, export) for file in ("config.json", "generation_config.json"))
    listed = generation.get("eos_token_id")
    stop_ids = tuple(listed) if isinstance(listed, list) else () if listed is None else (listed,)
    if not stop_ids or not all(isinstance(token, int) for token in stop_ids):
        raise DataError(
            f"{export}: generation_config.json: eos_token_id: expected the tokens that end an answer, got {listed!r};"
            " answers would never end, so export the model again"
        )
    heads = int(config.get("num_attention_heads") or 1)
    template = folder / "chat_template.jinja"
    return ServedModel(
        name=name,
        folder=folder,
        stop_ids=stop_ids,
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        speaks_tools=template.is_file() and "<tool_call>" in template.read_text(encoding="utf-8"),
    )


def _files(export: str, store: str, settings: Settings, scratch: Path) -> tuple[dict[str, Path], str]:
    """Return every file of the export by name, and what it is called."""
    if export.startswith("release:"):
        release = validate_name(export.removeprefix("release:"), "release name")
        opened = open_existing_store(store, settings)
        return _checked(open_input(opened, released_export(opened, release), scratch)), release
    address = _EXPORT.fullmatch(export)
    if address is not None:
        opened = open_existing_store(address["store"] or store, settings)
        return _checked(open_input(opened, address["prefix"] + "/", scratch)), address["name"]
    folder = Path(export).expanduser()
    if "://" in export or not folder.is_dir():
        raise ConfigError(f"EXPORT: expected {_FORMS}, got {export!r}")
    found = {str(path.relative_to(folder)): path.absolute() for path in sorted(folder.rglob("*")) if path.is_file()}
    name = re.sub(r"[^a-z0-9-]+", "-", folder.absolute().name.lower()).strip("-")
    return found, name or "model"


def _checked(exported: Input) -> dict[str, Path]:
    return {name: exported.path(name).absolute() for name in exported.names()}


def _object(file: Path, export: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{export}: {file.name}: expected JSON, got: {error}; export the model again") from error
    if not isinstance(value, dict):
        raise DataError(f"{export}: {file.name}: expected a JSON object, got {type(value).__name__}")
    return value
