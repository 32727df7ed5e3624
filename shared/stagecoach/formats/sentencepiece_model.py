"""Reads a SentencePiece ``tokenizer.model`` with nothing but the standard library, because the small images hold
neither ``sentencepiece`` nor ``protobuf`` and need only its pieces and a dozen settings.

The file is one protobuf message (field numbers from sentencepiece_model.proto):

    ModelProto      1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece   1 piece (text)   2 score (float)   3 type (1 normal if absent)
    TrainerSpec     3 model_type   24 treat_whitespace_as_suffix   35 byte_fallback   40 unk_id   41 bos_id   42
    eos_id   43 pad_id NormalizerSpec  2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5
    escape_whitespaces
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from stagecoach.errors import DataError

_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Value = int | bytes


class PieceKind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its position is its id."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceModel:
    """The parts of a SentencePiece model that decide its ids."""

    pieces: tuple[Piece, ...]
    model_type: int
    """Always 2, BPE."""
    byte_fallback: bool
    unk_id: int
    bos_id: int
    """-1 where there is none; also for the two below."""
    eos_id: int
    pad_id: int
    precompiled_charsmap: bytes
    """Unicode normalisation in SentencePiece's own compiled form; empty leaves text as it is."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    def text_of(self, piece_id: int) -> str | None:
        """Return the piece with that id, or None where there is none."""
        return self.pieces[piece_id].text if 0 <= piece_id < len(self.pieces) else None

    def merges(self) -> list[tuple[str, str]]:
        """Return the pairs that BPE joins, the most urgent first.

        A pair is joined if both halves and the result are normal pieces; results with a higher score come first, and of
        several ways to the same result the one with the longer left half.
        """
        normal = {piece.text: piece.score for piece in self.pieces if piece.kind is PieceKind.NORMAL}
        ranked: list[tuple[float, int, int, int, str, str]] = []
        for order, (text, score) in enumerate(normal.items()):
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in normal and right in normal:
                    ranked.append((-score, -len(left), -len(right), order, left, right))
        ranked.sort(key=lambda row: row[:4])
        return [(row[4], row[5]) for row in ranked]


def read_sentencepiece_model(data: bytes, origin: str) -> SentencePieceModel:
    """Read the bytes of a ``tokenizer.model``.

    Args:
        data: The whole file.
        origin: Its name, for messages.

    Raises:
        DataError: The bytes are no SentencePiece model, or one of a kind that is not supported.
    """
    try:
        model = _read(data)
    except (ValueError, struct.error, IndexError) as error:
        raise DataError(
            f"{origin}: expected a SentencePiece model, got bytes that are none ({error}); download the file again"
        ) from error
    if not model.pieces:
        raise DataError(
            f"{origin}: expected a SentencePiece model, got {len(data)} bytes without a single piece; download"
            " the file again"
        )
    if model.model_type != _BPE:
        raise DataError(
            f"{origin}: expected a SentencePiece model of type 2 (BPE), as every Llama and Mistral model has, got type"
            f" {model.model_type}; use a source with a tokenizer.json"
        )
    return model


def _read(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_as_bytes(value)))
        elif number == 2:
            trainer.update(_fields(_as_bytes(value)))
        elif number == 3:
            normalizer.update(_fields(_as_bytes(value)))
    if trainer.get(24):
        raise ValueError("treat_whitespace_as_suffix is not supported")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=_as_int(trainer.get(3, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=_as_int(trainer.get(40, 0)),
        bos_id=_as_int(trainer.get(41, 1)),
        eos_id=_as_int(trainer.get(42, 2)),
        pad_id=_as_int(trainer.get(43, -1)),
        precompiled_charsmap=_as_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _as_bytes(fields.get(2, b"\0\0\0\0")))
    return Piece(_as_bytes(fields.get(1, b"")).decode("utf-8"), score, PieceKind(_as_int(fields.get(3, 1))))


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Yield (field number, value): whole numbers as int (signed), everything else as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value - (1 << 64) if value >= 1 << 63 else value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field {number} ends behind the last byte")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"number of more than 64 bits at byte {at}")


def _as_bytes(value: _Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes were expected")
    return value


def _as_int(value: _Value) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number was expected")
    return value
