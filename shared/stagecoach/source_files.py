"""Chooses which files of a source a task takes; by name alone, so that nothing is read, hashed or fetched in vain."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stagecoach.errors import DataError, MissingInputError

_SAFETENSORS = re.compile(r"model(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?")
_TORCH = re.compile(r"pytorch_model(?:-\d{5}-of-\d{5})?\.bin(?:\.index\.json)?")
_RANK_FILE = re.compile(r"((?:.*/)?(?:release|iter_\d{7}))/mp_rank_(\d{2})(?:_(\d{3}))?/model_(?:optim_)?rng\.pt")
"""Weights of one rank of the original system: folder of the iteration, tensor rank, pipeline stage if there are several."""
TRACKER = "latest_checkpointed_iteration.txt"
"""Names the iteration that counts among those of the original system that lie beside the file."""
_DOCUMENT = re.compile(r"(?:LICEN[CS]E|NOTICE|COPYING|USE_POLICY|README)(?:\..*)?", re.IGNORECASE)
_DATA = re.compile(r".*\.(?:jsonl|ndjson|json|parquet)(?:\.(?:gz|zst))?", re.IGNORECASE | re.DOTALL)
_NO_DATA = re.compile(r"(?:dataset_infos?|state|dataset_dict)\.json")

_TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    }
)


def model_files(paths: Iterable[str], origin: str) -> list[str]:
    """Return config.json, generation_config.json and the weights, sorted: safetensors, .bin where there is none, or
    else the rank files of the original system and what names their iteration.

    Other weights that lie beside them (``consolidated``, adapters, ONNX, subfolders) are left alone.

    Args:
        paths: Every path of the source.
        origin: The source, for errors.

    Raises:
        MissingInputError: No config.json, no weights, or an index whose files are not there.
        DataError: More than one checkpoint of the original system.
    """
    top = {path for path in paths if "/" not in path}
    if "config.json" not in top:
        raise MissingInputError(f"{origin}: expected a config.json beside the weights, found {_some(paths)}")
    weights = {path for path in top if _SAFETENSORS.fullmatch(path)} or {path for path in top if _TORCH.fullmatch(path)}
    files = {path for path in weights if not path.endswith(".index.json")}
    configs = {"config.json", "generation_config.json"} & top
    if not files:
        original = original_checkpoint(paths, origin)
        if original is None:
            raise MissingInputError(
                f"{origin}: expected weights (model.safetensors, model-00001-of-0000N.safetensors, pytorch_model*.bin or"
                f" release/mp_rank_*/model_optim_rng.pt), found {_some(paths)}"
            )
        return sorted({*original.ranks.values(), *filter(None, [original.tracker])} | configs)
    whole = {path for path in files if "-of-" not in path}
    if whole:
        weights = whole  # needs neither parts nor an index
    else:
        _check_all_parts(files, origin)
    return sorted(weights | configs)


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalCheckpoint:
    """The files of one checkpoint of the original system."""

    iteration: str
    """``release`` or ``iter_0000152``."""
    ranks: Mapping[tuple[int, int], str]
    """(Tensor rank, pipeline stage) -> path of its weights."""
    tracker: str | None
    """Path of the file that names an iteration, where there is one."""


def original_checkpoint(paths: Iterable[str], origin: str) -> OriginalCheckpoint | None:
    """Return the one checkpoint of the original system among these paths, None if there is none.

    A tracker chooses nothing: who reads it has all iterations copied by then, ten times a model's size.

    Raises:
        DataError: Several iterations or folders with some, two files for one rank, or a tracker that lies elsewhere.
    """
    matches = [match for path in sorted(paths) if (match := _RANK_FILE.fullmatch(path))]
    folders = sorted({match[1] for match in matches})
    if not folders:
        return None
    such = f'under files, such as [config.json, "{_some(folders[-1:])}/*"]'
    if len(folders) > 1:
        raise DataError(
            f"{origin}: expected the checkpoint of one iteration, got {_some(folders)}; name the files of one {such}"
        )
    ranks: dict[tuple[int, int], str] = {}
    for match in matches:
        at = (int(match[2]), int(match[3] or 0))
        if at in ranks:
            raise DataError(
                f"{origin}: expected one file of weights for tensor rank {at[0]}, stage {at[1]}, got"
                f" {_some([ranks[at], match[0]])}; take one out, or leave it out of files"
            )
        ranks[at] = match[0]
    parent, _, iteration = folders[0].rpartition("/")
    beside = f"{parent}/{TRACKER}" if parent else TRACKER
    trackers = {path for path in paths if path.rsplit("/", 1)[-1] == TRACKER}
    if trackers - {beside}:
        raise DataError(
            f"{origin}: expected {_some([beside])} alone or none, got {_some(trackers)}; name the files of the checkpoint"
            f" {such}"
        )
    return OriginalCheckpoint(iteration=iteration, ranks=ranks, tracker=beside if trackers else None)


def document_files(paths: Iterable[str]) -> list[str]:
    """Return the licence, notice and model card, sorted."""
    return sorted(path for path in paths if _DOCUMENT.fullmatch(path))


def tokenizer_files(paths: Iterable[str], origin: str) -> list[str]:
    """Return the files that make the tokenizer, sorted.

    Raises:
        MissingInputError: Neither ``tokenizer.json`` nor ``tokenizer.model``.
    """
    chosen = sorted(_TOKENIZER_FILES & set(paths))
    if not {"tokenizer.json", "tokenizer.model"} & set(chosen):
        raise MissingInputError(f"{origin}: expected a tokenizer.json or tokenizer.model, found {_some(paths)}")
    return chosen


def data_files(paths: Iterable[str], origin: str) -> list[str]:
    """Return the chat files of a folder or prefix, sorted.

    Raises:
        MissingInputError: There is none.
    """
    every = sorted(path for path in paths if _DATA.fullmatch(path) and not _NO_DATA.fullmatch(path.rsplit("/", 1)[-1]))
    if not every:
        raise MissingInputError(
            f"{origin}: expected chat files (.jsonl, .json or .parquet, also .gz or .zst), found {_some(paths)}"
        )
    return every


def matching(paths: Iterable[str], patterns: Sequence[str], origin: str) -> list[str]:
    """Return the paths that match one of the glob patterns, sorted; ``*`` also crosses ``/``.

    Raises:
        MissingInputError: A pattern matches nothing.
    """
    every = sorted(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        found = [path for path in every if fnmatch.fnmatchcase(path, pattern)]
        if not found:
            raise MissingInputError(f"{origin}: expected files that match {pattern!r}, found {_some(every)}")
        chosen.update(found)
    return sorted(chosen)


def _check_all_parts(files: set[str], origin: str) -> None:
    """Refuse a set of numbered parts with a hole; ``model-00001-of-00003`` says how many there are."""
    for path in files:
        numbered = re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(\..*)", path)
        if numbered is None:
            continue
        stem, _, count, suffix = numbered.groups()
        missing = [name for n in range(1, int(count) + 1) if (name := f"{stem}{n:05d}-of-{count}{suffix}") not in files]
        if missing:
            raise MissingInputError(
                f"{origin}: expected {int(count)} files of weights, missing {', '.join(missing[:3])}"
            )


def _some(paths: Iterable[str]) -> str:
    every = sorted(path if path.isprintable() else ascii(path) for path in paths)
    return (", ".join(every[:8]) + (f" and {len(every) - 8} more" if len(every) > 8 else "")) or "nothing"
