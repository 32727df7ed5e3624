"""Chooses the chat files of a Hub data set by config and split, from its card and the names of its files alone.

The rules are those of ``datasets.load_dataset``, so that a config and a split mean here what they mean there:

    the card's ``configs``                data_files: patterns, by split; data_dir: a folder with a tree of its own
    else data/train-00000-of-00003.*      the split is what stands before the numbers, whatever it is
    else a folder named train, test ..    data/train/x.jsonl
    else a file named so                  train.jsonl, chat-test_2.parquet
    else every file                       all of it is the split ``train``

Where a data set lies there in several file types, as JSON and as parquet, only the more frequent one is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from stagecoach.errors import MissingInputError

_KINDS = {"jsonl": "json", "ndjson": "json", "json": "json", "parquet": "parquet"}
_NO_DATA = frozenset({"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})
_SHARDED = re.compile(r"data/([^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SEPARATORS = "-._ 0-9"

Splits = dict[str, list[str]]
"""Files of each split."""


def hub_data_files(
    paths: Iterable[str],
    origin: str,
    *,
    config: str | None = None,
    split: str | None = None,
    card_configs: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Return the chat files of a Hub data set, sorted.

    Args:
        paths: Every path of the repository.
        origin: The repository, for errors.
        config: The subset; None takes the default one.
        split: The split; None takes every split.
        card_configs: The ``configs`` of the card.

    Raises:
        MissingInputError: There is no such config or split, or it has no chat file.
    """
    every = [path for path in paths if _kind(path) is not None]
    splits = _only_one_kind(_splits(every, origin, _card_config(config, card_configs, origin)))
    if split is not None and split not in splits:
        raise MissingInputError(
            f"{origin}: expected a split of this data set ({', '.join(splits) or 'it has none'}), got {split!r}"
        )
    chosen = {path for name, files in splits.items() if split in (None, name) for path in files}
    if not chosen:
        found = sorted(paths)
        raise MissingInputError(
            f"{origin}: expected chat files (.jsonl, .json or .parquet, also .gz or .zst), found"
            f" {', '.join(found[:8]) or 'nothing'}{f' and {len(found) - 8} more' if len(found) > 8 else ''}"
        )
    return sorted(chosen)


def _card_config(
    config: str | None, card_configs: Sequence[Mapping[str, Any]], origin: str
) -> Mapping[str, Any] | None:
    """Return the card's entry for a config; None where the card names no configs."""
    if not card_configs:
        if config in (None, "default"):
            return None
        raise MissingInputError(
            f"{origin}: expected no config, since this data set's card names none, got {config!r}; leave it out, or"
            " name the files: files: ['folder/*.jsonl']"
        )
    names = [str(row.get("config_name", "default")) for row in card_configs]
    if config is None:
        marked = [name for name, row in zip(names, card_configs, strict=True) if row.get("default")]
        candidates = marked or (["default"] if "default" in names else names)
        if len(candidates) > 1:
            raise MissingInputError(f"{origin}: expected a config, one of {', '.join(names)}, got none; add config: ..")
        config = candidates[0]
    if config not in names:
        raise MissingInputError(f"{origin}: expected a config of this data set ({', '.join(names)}), got {config!r}")
    return card_configs[names.index(config)]


def _splits(every: Sequence[str], origin: str, card_config: Mapping[str, Any] | None) -> Splits:
    if card_config is None:
        return _splits_by_name(every)
    folder = str(card_config.get("data_dir") or "").strip("/")
    below = [path for path in every if not folder or path.startswith(f"{folder}/")]
    relative = [path[len(folder) + 1 :] if folder else path for path in below]
    patterns = _card_patterns(card_config.get("data_files"), origin)
    found = _splits_by_name(relative) if patterns is None else _matching(relative, patterns)
    return {split: [f"{folder}/{path}" if folder else path for path in files] for split, files in found.items()}


def _splits_by_name(every: Sequence[str]) -> Splits:
    """Return the splits that names of files and folders tell, by the first rule that finds any."""
    sharded: Splits = {}
    for path in every:
        if match := _SHARDED.fullmatch(path):
            sharded.setdefault(match.group(1), []).append(path)
    if sharded:
        return sharded
    for in_folder in (True, False):
        patterns = {split: _word_patterns(words, in_folder=in_folder) for split, words in _SPLIT_WORDS.items()}
        if found := _matching(every, patterns):
            return found
    return _matching(every, {"train": ["**"]})


def _word_patterns(words: Sequence[str], *, in_folder: bool) -> list[str]:
    before = ("", f"*[{_SEPARATORS}]")
    behind = ("/**", f"[{_SEPARATORS}]*/**") if in_folder else (f"[{_SEPARATORS}]*",)
    return [f"**/{start}{word}{end}" for word in words for start in before for end in behind]


def _card_patterns(value: Any, origin: str) -> dict[str, list[str]] | None:
    """Read the forms of a card's ``data_files``: one pattern, a list of patterns, or rows of split and path."""
    if value is None:
        return None
    splits: dict[str, list[str]] = {}
    for row in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        path = row.get("path") if isinstance(row, Mapping) else row
        given = [path] if isinstance(path, str) else path
        if not isinstance(given, list) or not all(isinstance(pattern, str) for pattern in given):
            raise MissingInputError(
                f"{origin}: expected patterns of files in the card's data_files, got {str(row)[:80]!r}; name the files"
                " in the recipe: files: ['folder/*.jsonl']"
            )
        splits.setdefault(str(row.get("split", "train")) if isinstance(row, Mapping) else "train", []).extend(given)
    return splits


def _matching(every: Sequence[str], patterns: Mapping[str, Sequence[str]]) -> Splits:
    found = {
        split: [path for path in every if any(_matches(path, pattern) for pattern in mine)]
        for split, mine in patterns.items()
    }
    return {split: files for split, files in found.items() if files}


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a glob pattern finds a path; hidden parts and folders such as ``__pycache__`` must be asked for."""
    pattern = pattern.removeprefix("./")
    if _glob(pattern).fullmatch(path) is None:
        return False
    name = path.rsplit("/", 1)[-1]
    if name in _NO_DATA and name != pattern.rsplit("/", 1)[-1]:
        return False
    parts, asked = PurePosixPath(path).parts, PurePosixPath(pattern).parts
    hidden = sum(part.startswith(".") for part in parts) == sum(part.startswith(".") for part in asked)
    special = sum(part.startswith("__") for part in parts[:-1]) == sum(part.startswith("__") for part in asked[:-1])
    return hidden and special


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    """Translate a pattern: ``*`` stays inside a folder, ``**`` as a whole part crosses folders, ``[..]`` is a set."""
    regex = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[!^]?\]?[^]]*\]|.", pattern):
        if token == "**/":
            regex += "(?:.+/)?"
        elif token == "**":
            regex += ".*"
        elif token == "*":
            regex += "[^/]*"
        elif token == "?":
            regex += "[^/]"
        elif token.startswith("[") and len(token) > 1:
            inside = token[1:-1].replace("\\", "\\\\")
            regex += f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
        else:
            regex += re.escape(token)
    return re.compile(regex)


def _kind(path: str) -> str | None:
    """Return ``json`` or ``parquet`` for a chat file's name, None for any other."""
    suffixes = path.rsplit("/", 1)[-1].lower().split(".")[1:]
    if suffixes and suffixes[-1] in ("gz", "zst"):
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _only_one_kind(splits: Splits) -> Splits:
    counts = Counter(_kind(path) for files in splits.values() for path in files)
    chosen = max(counts, key=lambda kind: (counts[kind], kind == "parquet"), default=None)
    kept = {split: [path for path in files if _kind(path) == chosen] for split, files in splits.items()}
    return {split: files for split, files in kept.items() if files}
