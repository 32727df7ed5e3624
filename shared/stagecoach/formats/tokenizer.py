"""The tokenizer that pack, export and serving share: how it is made from a source's files, and how it is loaded.

    tokenizer.json            the source's, or built from tokenizer.model; ChatML tokens added; adds BOS iff the
    source did tokenizer_config.json     tokenizer_class PreTrainedTokenizerFast, special tokens, chat template
    special_tokens_map.json   bos, eos, unk, pad once more, for older readers
    chat_template.jinja       the template, once more
    tokenizer.model           as it came, for llama.cpp

All ids come from ``tokenizer.json`` through the library ``tokenizers``. The class is never ``LlamaTokenizer``,
because that one gives other ids in other versions of transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from stagecoach.errors import DataError
from stagecoach.formats.chat_template import IM_END, IM_START, ChatTemplate, chatml_template
from stagecoach.formats.tokenizer_source import (
    CHAT_TEMPLATE,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    SpecialTokens,
    TokenizerSource,
    load_tokenizer,
    read_tokenizer_source,
)

ChatFormat = Literal["chatml", "tokenizer"]
TOKENIZER_FILES = (TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, CHAT_TEMPLATE, SENTENCEPIECE_MODEL)

_CHATML_TOKENS = (IM_START, IM_END)
_BLANK = "\u2581"
_PIECES = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _BLANK},
        {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
    ],
}
"""Normalizer of the tokenizers that were made from a SentencePiece model with a dummy prefix."""
_RESERVED = re.compile(r"reserved|unused|extra", re.IGNORECASE)
_UNLIMITED = 1_000_000_000_000_000_019_884_624_838_656
"""What transformers writes for a tokenizer without a longest text."""


def build_final_tokenizer(source_dir: Path, chat_format: ChatFormat) -> dict[str, bytes]:
    """Return the files of the final tokenizer that the source's files in ``source_dir`` lead to, by name.

    Args:
        source_dir: Folder with ``tokenizer.json`` or ``tokenizer.model``, and what else the source has.
        chat_format: ``chatml`` adds ``<|im_start|>`` and ``<|im_end|>`` where they are missing, after all other
            tokens, and
            puts the shipped template in; ``tokenizer`` keeps the source's tokens and template.

    Raises:
        MissingInputError: There is neither ``tokenizer.json`` nor ``tokenizer.model``.
        DataError: A file is not what its name says, or the chat format needs a template that the source lacks.
    """
    source = read_tokenizer_source(source_dir)
    if chat_format == "chatml":
        tokens = [AddedToken(text, normalized=False, special=True) for text in _CHATML_TOKENS]
        source.tokenizer.add_special_tokens(tokens)  # tokens that are there keep their ids and become special
        eos: str | None = IM_END
        bos_is_added = source.adds_bos and source.special.bos is not None and source.special.bos not in _CHATML_TOKENS
        template = chatml_template(with_bos=bos_is_added)
    else:
        if source.template is None:
            raise DataError(
                f"{source_dir}: chat_format is 'tokenizer', but neither {TOKENIZER_CONFIG} nor {CHAT_TEMPLATE}"
                " holds a chat template;"
                " use chat_format: chatml"
            )
        eos, bos_is_added, template = source.special.eos, source.adds_bos, source.template
    base_eos = {text for text in (source.special.eos, eos) if text is not None}
    special = SpecialTokens(bos=source.special.bos, eos=eos, unk=source.special.unk, pad=_choose_pad(source, base_eos))
    _set_bos_rule(source.tokenizer, special.bos if bos_is_added else None)
    return _files(source, special, bos_is_added, template)


def _choose_pad(source: TokenizerSource, eos: set[str]) -> str | None:
    """Return the base's pad, else unk, else a reserved special token, else nothing; never a token that ends an
    answer.
    """
    reserved = [
        token.content for _, token in sorted(source.tokenizer.get_added_tokens_decoder().items()) if token.special
    ]
    reserved = [text for text in reserved if "pad" in text.lower()] + [
        text for text in reserved if _RESERVED.search(text)
    ]
    for text in (source.special.pad, source.special.unk, *reserved):
        if text is not None and text not in eos and text not in _CHATML_TOKENS:
            return text
    return None


def _set_bos_rule(tokenizer: Tokenizer, bos: str | None) -> None:
    """Let plain encoding begin with ``bos``, or with nothing; a post-processor that does so already is left alone."""
    found = tokenizer.encode("a").ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    wanted = plain if bos is None else [tokenizer.token_to_id(bos), *plain]
    if found == wanted:
        return
    prefix = f"{bos}:0 " if bos is not None else ""
    tokenizer.post_processor = TemplateProcessing(
        single=f"{prefix}$A:0",
        pair=f"{prefix}$A:0 {prefix.replace(':0', ':1')}$B:1",
        special_tokens=[] if bos is None else [(bos, tokenizer.token_to_id(bos))],
    )


def _files(source: TokenizerSource, special: SpecialTokens, adds_bos: bool, template: str) -> dict[str, bytes]:
    longest = source.config.get("model_max_length")
    config: dict[str, Any] = {
        "add_bos_token": adds_bos,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for token_id, token in sorted(source.tokenizer.get_added_tokens_decoder().items())
        },
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest if isinstance(longest, int) else _UNLIMITED,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special.by_name(),
    }
    files: dict[str, bytes] = {}
    if (source.folder / SENTENCEPIECE_MODEL).is_file():
        files[SENTENCEPIECE_MODEL] = (source.folder / SENTENCEPIECE_MODEL).read_bytes()
        # llama.cpp rebuilds the tokenizer from this file, and puts a word boundary behind control tokens unless told
        config["add_prefix_space"] = _begins_words_after_control_tokens(source.tokenizer)
    return files | {
        TOKENIZER_JSON: source.tokenizer.to_str(pretty=True).encode("utf-8"),
        TOKENIZER_CONFIG: _json_bytes(config),
        SPECIAL_TOKENS_MAP: _json_bytes(special.by_name()),
        CHAT_TEMPLATE: template.encode("utf-8"),
    }


def _begins_words_after_control_tokens(tokenizer: Tokenizer) -> bool:
    """Say whether text right behind a control token is encoded as if a space stood before it."""
    control = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special][-1:]
    tokens = tokenizer.encode("".join([*control, "a"]), add_special_tokens=False).tokens
    return tokens[len(control)].startswith(("▁", "Ġ"))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode("utf-8")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of one text and where each comes from.

    Attributes:
        ids: int32 [n].
        starts: First character of each token in the text, int32 [n].
        ends: Character behind its last one, int32 [n].
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]


class ChatTokenizer:
    """The final tokenizer, loaded: renders conversations with its template and encodes them with ``tokenizers``
    alone.
    """

    def __init__(self, files: Mapping[str, bytes], origin: str) -> None:
        """Load the files that ``build_final_tokenizer`` made.

        Args:
            files: At least ``tokenizer.json`` and ``tokenizer_config.json``, by name.
            origin: Where they come from, for messages.

        Raises:
            DataError: A file is missing or not what its name says.
        """
        for name in (TOKENIZER_JSON, TOKENIZER_CONFIG):
            if name not in files:
                raise DataError(f"{origin}: expected the file {name}, got {', '.join(sorted(files)) or 'nothing'}")
        self.origin = origin
        self._json = files[TOKENIZER_JSON]
        self._tokenizer = load_tokenizer(self._json, f"{origin}/{TOKENIZER_JSON}")
        self._tokenizer.post_processor = None  # it would trim offsets
        self._plain: Tokenizer | None = None
        config = json.loads(files[TOKENIZER_CONFIG])
        names = ("bos", "eos", "unk", "pad")
        self.special = SpecialTokens(**{name: config.get(f"{name}_token") for name in names})
        self.adds_bos = bool(config.get("add_bos_token", False))
        self.template = ChatTemplate(str(config["chat_template"]), self.special.by_name(), origin)
        self.is_chatml = self.template.source in (chatml_template(with_bos=True), chatml_template(with_bos=False))
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self.control_ids: dict[str, int] = {
            token.content: token_id for token_id, token in added.items() if token.special
        }
        self.splits_hard = not any(
            token.lstrip or token.rstrip or token.single_word or token.normalized
            for token in added.values()
            if token.special
        )
        longest_first = sorted(self.control_ids, key=lambda text: (-len(text), text))
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @property
    def sha256(self) -> str:
        """Digest of ``tokenizer.json``; equal digests give equal ids."""
        return hashlib.sha256(self._json).hexdigest()

    @property
    def bare(self) -> Tokenizer:
        """The tokenizer of the library ``tokenizers``, without a post-processor."""
        return self._tokenizer

    @cached_property
    def begins_with_bos(self) -> bool:
        """Whether a rendered conversation begins with the BOS token; never so if that is a ChatML token."""
        text = self.template.render([{"role": "user", "content": "a"}], add_generation_prompt=True)
        bos = self.special.bos
        return bos is not None and bos not in _CHATML_TOKENS and text.startswith(bos)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which a generated answer ends."""
        return (self.control_ids[self.special.eos],) if self.special.eos in self.control_ids else ()

    def id_of(self, text: str) -> int | None:
        """Return the id of one token, or None if the vocabulary has none of that text."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def token_of(self, token_id: int) -> str:
        """Return the text of one id as the vocabulary spells it, such as ``▁system``."""
        return self._tokenizer.id_to_token(token_id) or f"<{token_id}>"

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, its control tokens recognised, nothing added; uses every core."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_chatml_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the ids of all texts one behind another, int32 [n], and where each begins, int64 [texts + 1].

        Args:
            texts: Conversations in the shipped ChatML form whose content spells no control token.
        """
        ids, borders = array("i"), [0]
        tokenizer = self._tokenizer
        if self._of_pieces is not None:
            tokenizer, texts = self._of_pieces, [self._as_pieces(text) for text in texts]
        for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids.fromlist(encoding.ids)
            borders.append(len(ids))
        return np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32), np.array(borders, np.int64)

    @cached_property
    def _of_pieces(self) -> Tokenizer | None:
        """This tokenizer for texts that are normalised already, where normalising means no more than what
        ``_as_pieces`` does, as in Llama's and Mistral's; the library takes a sixth of its time for it.
        """
        spec = json.loads(self._json)
        others = [token["content"] for token in spec["added_tokens"] if token["content"] not in self.control_ids]
        if spec["normalizer"] != _PIECES or spec["pre_tokenizer"] is not None or others or not self.splits_hard:
            return None
        tokenizer = load_tokenizer(self._json, f"{self.origin}/{TOKENIZER_JSON}")
        tokenizer.post_processor = tokenizer.normalizer = None
        return tokenizer

    def _as_pieces(self, text: str) -> str:
        """Return a ChatML text as SentencePiece spells it: blanks as U+2581, and one before each run of plain text."""
        bos = self.special.bos or ""
        bos = bos if text.startswith(bos) else ""
        pieces = text[len(bos) :].replace(" ", _BLANK)
        for control in _CHATML_TOKENS:  # plain text follows each of them: a role, or the line's end
            pieces = pieces.replace(control, control + _BLANK)
        return bos + pieces

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Return ids and offsets of each text, its control tokens recognised, nothing added; uses every core."""
        return [
            _encoded(encoding, 0) for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def encode(self, text: str, literal: Sequence[tuple[int, int]] = ()) -> Encoded:
        """Return ids and offsets of one text.

        Args:
            text: The rendered text.
            literal: Character ranges, ascending, that spell a control token but come from content; they stay plain
                text.

        Raises:
            DataError: The tokenizer makes a control token even of plain text.
        """
        if not literal:
            return _encoded(self._tokenizer.encode(text, add_special_tokens=False), 0)
        if not self.splits_hard:
            raise DataError(
                f"{self.origin}: content spells a control token, and this tokenizer's control tokens swallow"
                " text around them; drop the row"
            )
        parts: list[Encoded] = []
        done = 0
        for start, end in [*self._controls(text, literal), (len(text), len(text))]:
            if done < start:
                parts.append(self._encode_plain(text[done:start], done))
            if start < end:
                parts.append(
                    Encoded(*(np.array([value], np.int32) for value in (self.control_ids[text[start:end]], start, end)))
                )
            done = end
        return Encoded(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "starts", "ends")))

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of a conversation that waits for the assistant's next answer."""
        return self.encode_batch([self.template.render(messages, tools, add_generation_prompt=True)])[0]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _controls(self, text: str, literal: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the ranges of true control tokens: those that no literal range touches."""
        found: list[tuple[int, int]] = []
        done = 0
        for start, end in [*literal, (len(text), len(text))]:
            found += [match.span() for match in self.control_pattern.finditer(text, done, start)]
            done = end
        return found

    def _encode_plain(self, text: str, offset: int) -> Encoded:
        if self._plain is None:
            self._plain = load_tokenizer(self._json, f"{self.origin}/{TOKENIZER_JSON}")
            self._plain.post_processor = None
            self._plain.encode_special_tokens = True
        encoded = _encoded(self._plain.encode(text, add_special_tokens=False), offset)
        if np.isin(encoded.ids, list(self.control_ids.values())).any() and self.control_pattern.search(text):
            raise DataError(
                f"{self.origin}: the tokenizer makes a control token of the plain text {text[:60]!a}; drop the row"
            )
        return encoded


def _encoded(encoding: Any, offset: int) -> Encoded:
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2) + np.int32(offset)
    return Encoded(np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1])
