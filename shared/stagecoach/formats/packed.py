"""The packed data format: tokens, trained bits and origins of whole conversations, laid out pack after pack.

    packed.json                   what the packs were made with: sizes, dtype, BOS rule, tokenizer, sources
    train/tokens.bin              ids of all documents one behind another, uint16 or int32, little-endian
    train/trained.bits            one bit a token, least significant first: 1 = this token is a target
    train/documents.bin           56-byte records (DOCUMENT): where a document lies and which row it came from
    train/ids.bin                 the rows' own ids, UTF-8, one behind another
    train/packs.bin               32-byte records (PACK): first document, number of documents, sums
    heldout/..                    the same five

Documents of one pack lie side by side, so that reading a pack touches only its own bytes:

    pack 0                    pack 1
    [doc 0 | doc 1 | doc 2]   [doc 3 | doc 4]   ..        free slots are not stored; the reader adds them as padding

A target is predicted from the token before it in the same document; a document's first token is never one. Labels are
derived when a pack is read, so they cannot be misaligned. ``docs/formats/packed.md`` has every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt

from stagecoach.errors import CorruptObjectError

FORMAT = "stagecoach-packed"
FORMAT_VERSION = 1
PACKED_JSON = "packed.json"
SPLITS = ("train", "heldout")
SPLIT_FILES = ("tokens.bin", "trained.bits", "documents.bin", "ids.bin", "packs.bin")

DOCUMENT = np.dtype(
    [
        ("first_token", "<u8"),  # position of its first token in tokens.bin
        ("row", "<u8"),  # row in its file, from 1
        ("id_offset", "<u8"),  # where its id begins in ids.bin; it ends where the next one begins
        ("digest", "V16"),  # hash of the conversation's messages and tools
        ("num_tokens", "<u4"),
        ("skipped_tokens", "<u4"),  # tokens of the conversation before this piece of it; 0 for a whole one
        ("source", "<u2"),  # index into packed.json sources
        ("file", "<u2"),  # index into packed.json files
        ("copy", "<u2"),  # 0 for the first copy under a weight above 1
        ("flags", "<u2"),  # CUT_BEFORE, CUT_BEHIND
    ]
)
_RECORDS_AT_ONCE = 1 << 16
_PACKS_AT_ONCE = 1 << 10

CUT_BEFORE = 1
CUT_BEHIND = 2

PACK = np.dtype(
    [
        ("first_document", "<u8"),
        ("sum_squares", "<u8"),  # sum of squared document lengths; informative
        ("num_documents", "<u4"),
        ("num_tokens", "<u4"),
        ("num_targets", "<u4"),
        ("max_document_tokens", "<u4"),  # informative
    ]
)


class Files(Protocol):
    """Where a packed output's files are; ``stagecoach.outputs.Input`` is one."""

    def path(self, name: str) -> Path:
        """Return a local file."""

    def read_bytes(self, name: str) -> bytes:
        """Return a small file's content."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest stored dtype for ids below ``vocab_size``: uint16 up to 65,536, else int32."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class PackArrays:
    """One pack, ready to be trained on. T is the pack's number of slots.

    Attributes:
        tokens: Ids, int32 [T]; padding holds ``pad_id``.
        positions: Position inside the document, int32 [T]; restarts at 0 with each document.
        trained: This token is a target, predicted from the one before it, bool [T]; False in padding.
        document_starts: First slot of each document, int32 [D].
        document_ids: Index of each document in its split, int64 [D].
        num_document_tokens: Slots that hold documents, the first ones; the rest is padding.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    document_starts: npt.NDArray[np.int32]
    document_ids: npt.NDArray[np.int64]
    num_document_tokens: int


class PackedSplit:
    """One split of a packed output, mapped into memory."""

    def __init__(self, description: dict[str, Any], split: str, paths: dict[str, Path]) -> None:
        """Map the files of one split; ``open`` finds them."""
        self.name = split
        self.description = description
        self.pack_tokens = int(description["pack_tokens"])
        self.pad_id = int(description["pad_id"])
        self.token_dtype = np.dtype(str(description["token_dtype"]))
        self.tokens = _mapped(paths["tokens.bin"], self.token_dtype)
        self._bits = _mapped(paths["trained.bits"], np.dtype(np.uint8))
        self.documents = _mapped(paths["documents.bin"], DOCUMENT)
        self.packs = _mapped(paths["packs.bin"], PACK)
        self._ids = _mapped(paths["ids.bin"], np.dtype(np.uint8))
        self._check(split)

    @classmethod
    def open(cls, files: Files, split: str) -> Self:
        """Open a split of a finished output.

        Args:
            files: The output's files, by name.
            split: ``train`` or ``heldout``.

        Raises:
            CorruptObjectError: The files are not of this format, or do not belong together.
        """
        description = read_packed_json(files.read_bytes(PACKED_JSON))
        return cls(description, split, {name: files.path(f"{split}/{name}") for name in SPLIT_FILES})

    @property
    def num_packs(self) -> int:
        """How many packs there are."""
        return len(self.packs)

    @property
    def num_documents(self) -> int:
        """How many documents there are; a conversation cut in two counts twice."""
        return len(self.documents)

    @property
    def max_documents_per_pack(self) -> int:
        """The most documents that a pack holds, its padding document counted; sizes the tables of attention."""
        padded = self.packs["num_tokens"] < self.pack_tokens
        return int((self.packs["num_documents"] + padded).max()) if len(self.packs) else 0

    @property
    def document_hashes(self) -> list[str]:
        """Hash of each document's conversation, 32 hex digits; equal in every packing of the same messages."""
        return [bytes(digest).hex() for digest in self.documents["digest"]]

    @property
    def document_sources(self) -> list[str]:
        """Name of each document's source."""
        return [str(self.description["sources"][number]) for number in self.documents["source"]]

    def pack(self, index: int) -> PackArrays:
        """Return one pack; only its own bytes are read.

        Raises:
            IndexError: There is no such pack.
        """
        if not 0 <= index < self.num_packs:
            raise IndexError(f"{self.name}: expected a pack from 0 to {self.num_packs - 1}, got {index}")
        record = self.packs[index]
        first, count, used = int(record["first_document"]), int(record["num_documents"]), int(record["num_tokens"])
        documents = self.documents[first : first + count]
        begin = int(documents["first_token"][0])
        starts = (documents["first_token"] - documents["first_token"][0]).astype(np.int32)
        edges = np.append(starts, np.int32(used))
        ids = np.arange(first, first + count, dtype=np.int64)
        tokens = np.full(self.pack_tokens, self.pad_id, np.int32)
        tokens[:used] = self.tokens[begin : begin + used]
        trained = np.zeros(self.pack_tokens, np.bool_)
        trained[:used] = self.trained(begin, begin + used)
        lengths = np.diff(edges, append=np.int32(self.pack_tokens))
        positions = np.arange(self.pack_tokens, dtype=np.int32) - np.repeat(edges, lengths)
        return PackArrays(tokens, positions.astype(np.int32), trained, starts, ids, used)

    def trained(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """Return the trained bits of the tokens from ``begin`` up to, not including, ``end``."""
        first_byte = begin // 8
        bits = np.unpackbits(self._bits[first_byte : (end + 7) // 8], bitorder="little")
        return bits[begin - 8 * first_byte : end - 8 * first_byte].astype(np.bool_)

    def document_tokens(self, document: int) -> npt.NDArray[np.int32]:
        """Return the ids of one document, int32."""
        record = self.documents[document]
        begin = int(record["first_token"])
        return self.tokens[begin : begin + int(record["num_tokens"])].astype(np.int32)

    def document_trained(self, document: int) -> npt.NDArray[np.bool_]:
        """Return the trained bits of one document."""
        record = self.documents[document]
        begin = int(record["first_token"])
        return self.trained(begin, begin + int(record["num_tokens"]))

    def trace(self, document: int) -> dict[str, Any]:
        """Return where a document came from: source, file, row, the row's own id, the conversation's hash, its
        piece.
        """
        record = self.documents[document]
        end = int(self.documents["id_offset"][document + 1]) if document + 1 < self.num_documents else len(self._ids)
        return {
            "source": self.description["sources"][int(record["source"])],
            "file": self.description["files"][int(record["file"])],
            "row": int(record["row"]),
            "id": bytes(self._ids[int(record["id_offset"]) : end]).decode("utf-8"),
            "digest": bytes(record["digest"]).hex(),
            "skipped_tokens": int(record["skipped_tokens"]),
            "copy": int(record["copy"]),
        }

    def _check(self, split: str) -> None:
        """Compare the sizes that the files have with those that ``packed.json`` and each other promise."""
        summary = self.description["splits"][split]
        counts = {"num_tokens": len(self.tokens), "num_documents": len(self.documents), "num_packs": len(self.packs)}
        for name, found in counts.items():
            if found != summary[name]:
                raise CorruptObjectError(
                    f"{split}: expected {name} {summary[name]} as in {PACKED_JSON}, got {found}; run pack again"
                )
        if len(self._bits) != (len(self.tokens) + 7) // 8:
            raise CorruptObjectError(
                f"{split}/trained.bits: expected one bit for each of {len(self.tokens)} tokens, got"
                f" {len(self._bits)} bytes"
            )


def read_packed_json(data: bytes) -> dict[str, Any]:
    """Return the description of a packed output.

    Raises:
        CorruptObjectError: It is not of this format or version.
    """
    try:
        description = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptObjectError(f"{PACKED_JSON}: expected JSON, got: {error}") from error
    found = (description.get("format"), description.get("format_version")) if isinstance(description, dict) else None
    if found != (FORMAT, FORMAT_VERSION):
        raise CorruptObjectError(
            f"{PACKED_JSON}: expected format {FORMAT} version {FORMAT_VERSION}, got {found}; run pack again"
        )
    return dict(description)


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    size_bytes = path.stat().st_size
    if size_bytes % dtype.itemsize:
        raise CorruptObjectError(
            f"{path}: expected a multiple of {dtype.itemsize} bytes, got {size_bytes}; run pack again"
        )
    if size_bytes == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


class BitWriter:
    """Appends bits to a stream, eight a byte, least significant first; the last byte is filled with zeros."""

    def __init__(self, stream: BinaryIO) -> None:
        """Write to ``stream``; ``close`` writes the last, unfinished byte but leaves the stream open."""
        self._stream = stream
        self._rest = np.zeros(0, np.uint8)

    def write(self, bits: npt.NDArray[Any]) -> None:
        """Append bits; anything but 0 is a 1."""
        joined = np.concatenate([self._rest, (bits != 0).astype(np.uint8)])
        whole = len(joined) - len(joined) % 8
        if whole:
            self._stream.write(np.packbits(joined[:whole], bitorder="little").tobytes())
        self._rest = joined[whole:]

    def close(self) -> None:
        """Write the bits that do not fill a byte."""
        if len(self._rest):
            self._stream.write(np.packbits(self._rest, bitorder="little").tobytes())
            self._rest = np.zeros(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def pack_records(
    documents: npt.NDArray[Any], num_documents: Sequence[int] | npt.NDArray[Any], targets: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return the PACK records of documents that are laid out pack after pack.

    Args:
        documents: DOCUMENT records, in order.
        num_documents: Documents of each pack, none of them 0.
        targets: Trained tokens of each document.
    """
    counts = np.asarray(num_documents, np.int64)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else np.zeros(0, np.int64)
    records = np.zeros(len(counts), PACK)
    records["first_document"] = first
    records["num_documents"] = counts
    for begin in range(0, len(counts), _PACKS_AT_ONCE):
        part = records[begin : begin + _PACKS_AT_ONCE]
        low, high = int(part["first_document"][0]), int(part["first_document"][-1]) + int(part["num_documents"][-1])
        lengths, starts = documents["num_tokens"][low:high].astype(np.uint64), first[begin : begin + len(part)] - low
        part["num_tokens"] = np.add.reduceat(lengths, starts)
        part["sum_squares"] = np.add.reduceat(lengths * lengths, starts)
        part["num_targets"] = np.add.reduceat(np.asarray(targets[low:high], np.uint64), starts)
        part["max_document_tokens"] = np.maximum.reduceat(lengths, starts)
    return records


def plan_sha256(documents: npt.NDArray[Any], packs: npt.NDArray[Any]) -> str:
    """Return the digest of which document lies where: equal plans train on the same packs, whatever file they are
    in.
    """
    digest = hashlib.sha256()
    for column in (documents["digest"], documents["num_tokens"], documents["skipped_tokens"], packs["num_documents"]):
        for begin in range(0, len(column), _RECORDS_AT_ONCE):
            digest.update(np.ascontiguousarray(column[begin : begin + _RECORDS_AT_ONCE]).tobytes())
    return digest.hexdigest()
