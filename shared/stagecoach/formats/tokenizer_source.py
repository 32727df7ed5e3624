"""Reads what a source's tokenizer files say: the tokenizer itself, its special tokens, whether it adds BOS, its
template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stagecoach.errors import DataError, MissingInputError
from stagecoach.formats.hf_model import vocabulary
from stagecoach.formats.sentencepiece_json import tokenizer_from_sentencepiece
from stagecoach.formats.sentencepiece_model import SentencePieceModel, read_sentencepiece_model

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
SENTENCEPIECE_MODEL = "tokenizer.model"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """The special tokens of a tokenizer, as text; None where there is none."""

    bos: str | None
    eos: str | None
    unk: str | None
    pad: str | None

    def by_name(self) -> dict[str, str]:
        """Return ``{"bos_token": "<s>", ..}`` without those that are absent."""
        pairs = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.unk, "pad_token": self.pad}
        return {name: text for name, text in pairs.items() if text is not None}


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """What a folder of tokenizer files says."""

    folder: Path
    tokenizer: Tokenizer
    special: SpecialTokens
    adds_bos: bool
    template: str | None
    config: dict[str, Any]


def read_tokenizer_source(folder: Path) -> TokenizerSource:
    """Read a folder of tokenizer files.

    Raises:
        MissingInputError: There is neither ``tokenizer.json`` nor a SentencePiece ``tokenizer.model``.
        DataError: A file is not what its name says, or the files do not belong together.
    """
    config = _read_json(folder / TOKENIZER_CONFIG)
    special_map = _read_json(folder / SPECIAL_TOKENS_MAP)
    model: SentencePieceModel | None = None
    if (folder / SENTENCEPIECE_MODEL).is_file() and _looks_like_sentencepiece(folder / SENTENCEPIECE_MODEL):
        model = read_sentencepiece_model((folder / SENTENCEPIECE_MODEL).read_bytes(), SENTENCEPIECE_MODEL)
    if (folder / TOKENIZER_JSON).is_file():
        data = (folder / TOKENIZER_JSON).read_bytes()
        vocabulary(data, TOKENIZER_JSON)  # the library gives tokens other ids than those that the file says
        tokenizer = load_tokenizer(data, TOKENIZER_JSON)
    elif model is not None:
        tokenizer = tokenizer_from_sentencepiece(model, _added_texts(config))
    elif (folder / SENTENCEPIECE_MODEL).is_file():
        raise DataError(
            f"{SENTENCEPIECE_MODEL}: expected a SentencePiece model, or a {TOKENIZER_JSON} beside it, got a file of another"
            " format; download it again, or add the other one"
        )
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise MissingInputError(
            f"{folder}: expected {TOKENIZER_JSON} or a SentencePiece {SENTENCEPIECE_MODEL}, found {found[:300]}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = _special_tokens(config, special_map, model)
    for text in special.by_name().values():
        if tokenizer.token_to_id(text) is None:
            raise DataError(
                f"the special token {text!r} is not in the vocabulary of {TOKENIZER_JSON}; the files do not belong"
                " together"
            )
    return TokenizerSource(
        folder=folder,
        tokenizer=tokenizer,
        special=special,
        adds_bos=_adds_bos(config, tokenizer, special.bos, built=not (folder / TOKENIZER_JSON).is_file()),
        template=_source_template(folder, config),
        config=config,
    )


def load_tokenizer(data: bytes, origin: str) -> Tokenizer:
    """Return the tokenizer that the bytes of a ``tokenizer.json`` describe.

    Raises:
        DataError: They describe none.
    """
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception and ValueError
        raise DataError(
            f"{origin}: expected a tokenizer.json of the library tokenizers, got: {str(error)[:200]}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: expected JSON, got: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name}: expected a JSON object, got {type(value).__name__}")
    return value


def _looks_like_sentencepiece(path: Path) -> bool:
    """Tell it from a tiktoken file, which goes by the same name and holds lines of base64."""
    with open(path, "rb") as stream:
        return stream.read(1) == b"\n"


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _added_texts(config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return the tokens that a slow tokenizer's config adds behind the SentencePiece vocabulary: id -> (text,
    special).
    """
    decoder = config.get("added_tokens_decoder")
    found: dict[int, tuple[str, bool]] = {}
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        text = _token_text(value)
        if str(key).isdecimal() and text is not None:
            found[int(key)] = (text, bool(value.get("special", False)) if isinstance(value, dict) else True)
    return found


def _special_tokens(
    config: Mapping[str, Any], special_map: Mapping[str, Any], model: SentencePieceModel | None
) -> SpecialTokens:
    defaults: dict[str, str | None] = {"bos": None, "eos": None, "unk": None, "pad": None}
    if model is not None and not config and not special_map:
        defaults = {name: model.text_of(getattr(model, f"{name}_id")) for name in defaults}
    chosen: dict[str, str | None] = {}
    for name, default in defaults.items():
        key = f"{name}_token"
        chosen[name] = _token_text(config.get(key, special_map.get(key))) or default
    if model is not None and chosen["bos"] is None and "bos_token" not in config:
        chosen["bos"] = model.text_of(model.bos_id)
    if model is not None and chosen["unk"] is None and "unk_token" not in config:
        chosen["unk"] = model.text_of(model.unk_id)
    if model is not None and chosen["eos"] is None and "eos_token" not in config:
        chosen["eos"] = model.text_of(model.eos_id)
    return SpecialTokens(**chosen)


def _adds_bos(config: Mapping[str, Any], tokenizer: Tokenizer, bos: str | None, *, built: bool) -> bool:
    if bos is None:
        return False
    flag = config.get("add_bos_token")
    if isinstance(flag, bool):
        return flag
    if built:
        return True  # what every SentencePiece tokenizer of the Llama and Mistral families does
    ids = tokenizer.encode("a").ids
    return bool(ids) and ids[0] == tokenizer.token_to_id(bos)


def _source_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    if (folder / CHAT_TEMPLATE).is_file():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {str(row.get("name")): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None
