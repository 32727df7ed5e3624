"""Reads rows from chat files: JSON lines, a JSON array or parquet, each also inside gzip or zstd.

A row that cannot be decoded is handed out as the problem it is; a file that cannot be read to its end is an error,
because nobody knows what was behind the damage.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from stagecoach.errors import DataError
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources import strict_json
from stagecoach_pack.sources.parquet_schema import readable_schema

MAX_ROW_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_ZSTD_CHUNK_BYTES = 4096
"""Compressed bytes at a time: zstd makes at most 128 KiB of 4 bytes, so this bounds the memory to 128 MiB."""
_ALWAYS_BYTES = 64 * 1024 * 1024
_MAX_GROWTH = 500
"""A compressed file may become this many times larger, or ``_ALWAYS_BYTES``; chat data grow five- to fiftyfold."""
_PARQUET_ROWS = 256
_IGNORED_NAMES = (
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    ".gitattributes",
    ".gitignore",
    "dataset_infos.json",
    "dataset_info.json",
)
_IGNORED_SUFFIXES = (".md", ".txt", ".py", ".png", ".jpg", ".yaml", ".yml", ".lock")
_SUPPORTED = ".jsonl, .ndjson, .json or .parquet, also with .gz or .zst behind"

Row = tuple[int, Any | RowProblem]
"""Row number from 1, and the decoded value or why there is none."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a source: the name that reports use, and where its bytes are."""

    name: str
    path: Path


def is_ignored(name: str) -> bool:
    """Tell whether a file of that name only accompanies the data (a card, a licence)."""
    base = name.rsplit("/", 1)[-1].lower()
    return base.startswith(_IGNORED_NAMES) or base.endswith(_IGNORED_SUFFIXES)


def read_rows(file: DataFile) -> Iterator[Row]:
    """Yield the rows of one file, in order.

    Raises:
        DataError: The name's ending is unknown, or the file is empty, cut or damaged as a whole.
    """
    base = file.name.rsplit("/", 1)[-1].lower()
    compression = next((ending for ending in (".gz", ".zst") if base.endswith(ending)), "")
    kind = base.removesuffix(compression).rsplit(".", 1)[-1]
    if kind not in ("jsonl", "ndjson", "json", "parquet"):
        raise DataError(
            f"{file.name}: expected a file that ends in {_SUPPORTED}; take it out of the source's files or rename it"
        )
    try:
        if kind == "parquet":
            yield from _parquet_rows(file, compression)
        else:
            with io.BufferedReader(io.FileIO(file.path), _CHUNK_BYTES) as raw:
                yield from _json_rows(file, _decompressed(raw, compression, file))
    except (EOFError, gzip.BadGzipFile, zlib.error, _BadZstd) as error:
        what = {".gz": "gzip", ".zst": "zstd"}.get(compression, "file")
        raise DataError(
            f"{file.name}: expected a whole {what} file, got a cut or damaged one ({str(error)[:120]});"
            " download it again"
        ) from error


class _Peekable(Protocol):
    """The part of a buffered binary stream that is used here."""

    def peek(self, size: int, /) -> bytes: ...
    def read(self, size: int = ..., /) -> bytes: ...
    def readline(self, size: int = ..., /) -> bytes: ...


class _BadZstd(Exception):
    """A zstd stream that ends early or is damaged."""


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of one or more zstd frames; unlike the library's own reader it notices a cut frame."""

    def __init__(self, raw: _Peekable) -> None:
        import zstandard

        super().__init__()
        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error: type[Exception] = zstandard.ZstdError
        self._frame: Any = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            if not self._compressed:
                self._compressed = self._raw.read(_ZSTD_CHUNK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise _BadZstd("the last frame is cut")
                return 0
            self._decompress()
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._new_frame()
        try:
            self._plain = memoryview(self._frame.decompress(self._compressed))
        except self._error as error:
            raise _BadZstd(str(error)) from error
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None


class _Limited(io.RawIOBase):
    """Hands a decompressed stream on until it has become larger than any chat file does."""

    def __init__(self, stream: Any, file: DataFile) -> None:
        super().__init__()
        self._stream = stream
        self._file = file
        self._left_bytes = _max_plain_bytes(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise _bomb(self._file)
        buffer[: len(data)] = data
        return len(data)


def _max_plain_bytes(file: DataFile) -> int:
    """Return how large the content of a compressed file may be."""
    return max(_ALWAYS_BYTES, _MAX_GROWTH * file.path.stat().st_size)


def _bomb(file: DataFile) -> DataError:
    return DataError(
        f"{file.name}: expected compressed chat data, got a file that becomes more than {_MAX_GROWTH} times larger;"
        " take it out of the source, or decompress it yourself if you trust it"
    )


def _decompressed(raw: _Peekable, compression: str, file: DataFile) -> _Peekable:
    if compression == ".gz":
        return io.BufferedReader(_Limited(gzip.GzipFile(fileobj=cast(BinaryIO, raw)), file), _CHUNK_BYTES)
    if compression == ".zst":
        return io.BufferedReader(_Limited(io.BufferedReader(_ZstdReader(raw), _CHUNK_BYTES), file), _CHUNK_BYTES)
    return raw


def _json_rows(file: DataFile, stream: _Peekable) -> Iterator[Row]:
    """Tell an array from JSON lines by the first character."""
    head: bytes = stream.peek(_CHUNK_BYTES)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{file.name}: expected UTF-8 text, got UTF-16; convert it, for example with iconv -f UTF-16 -t UTF-8"
        )
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
        head = head[len(codecs.BOM_UTF8) :]
    first = head.lstrip()[:1]
    if first == b"{" and _is_object_over_lines(head):
        raise DataError(
            f"{file.name}: row 1: expected one JSON value a line, or one JSON array of rows, got a JSON object over several"
            " lines; write it on one line, for example with jq -c . (with jq -c '.NAME[]' if its rows are a list under NAME)"
        )
    rows = _array_rows(file, stream) if first == b"[" else _line_rows(stream)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(
            f"{file.name}: expected at least one row, got an empty file; take it out of the source or download it again"
        )


def _is_object_over_lines(head: bytes) -> bool:
    """Tell whether a file begins with an object that is indented for people, so that no line of it is JSON."""
    first_line, _, behind = head.lstrip().partition(b"\n")
    if first_line.strip() == b"{":
        return behind.lstrip().startswith((b'"', b"}"))
    if isinstance(_decode(first_line), RowProblem):
        try:
            value, end = json.JSONDecoder(parse_int=str).raw_decode(head.decode("utf-8", "replace").lstrip())
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and end > len(first_line.decode("utf-8", "replace"))
    return False


def _line_rows(stream: _Peekable) -> Iterator[Row]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK_BYTES)
            yield number, RowProblem("row too large", "", f"at most {MAX_ROW_BYTES} bytes", "more")
        elif not line.isspace():
            yield number, _decode(line)


def _decode(line: bytes) -> Any | RowProblem:
    row = line.rstrip(b"\r\n")
    try:
        return strict_json.loads(row.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowProblem("invalid UTF-8", "", "UTF-8 text", f"byte {error.object[error.start]:#04x} at {error.start}")
    except ValueError as error:
        expected = f"one JSON value ({strict_json.reason(error)})"
        return RowProblem("invalid JSON", "", expected, row[:60].decode("utf-8", "replace"))


def _array_rows(file: DataFile, stream: _Peekable) -> Iterator[Row]:
    """Yield the items of a JSON array, holding one chunk and one item in memory."""
    text = _Window(file, stream)
    text.skip_space()
    text.take("[")
    number = 0
    text.skip_space()
    if text.next() == "]":
        text.position += 1
    else:
        while True:
            number += 1
            yield number, text.value(number)
            text.skip_space()
            if text.next() == "]":
                text.position += 1
                break
            text.take(",")
            text.skip_space()
    text.skip_space()
    if text.next():
        lists = ' whose rows are lists (each has to be an object, {"messages": [..]})' if text.next() == "[" else ""
        raise DataError(
            f"{file.name}: expected the end of the file behind the array's ']', got {text.next()!r}; is it JSON lines{lists}?"
        )


class _Window:
    """A sliding view of a text stream that can decode one JSON value at a time."""

    def __init__(self, file: DataFile, stream: _Peekable) -> None:
        self._file = file
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._at_end = False
        self._text = ""
        self.position = 0

    def _more(self, size_bytes: int = _CHUNK_BYTES) -> bool:
        """Append to the window what comes next; False at the end of the file."""
        if self._at_end:
            return False
        data = self._stream.read(size_bytes)
        self._at_end = not data
        try:
            added = self._decode.decode(data, final=self._at_end)
        except UnicodeDecodeError as error:
            got = "a file cut inside a character" if self._at_end else f"the byte {error.object[error.start]:#04x}"
            raise DataError(
                f"{self._file.name}: expected UTF-8 text, got {got}; convert or download it again"
            ) from error
        self._text = self._text[self.position :] + added
        self.position = 0
        return not self._at_end

    def next(self) -> str:
        """Return the character at the position, or nothing at the end."""
        while self.position >= len(self._text):
            if not self._more():
                return ""
        return self._text[self.position]

    def skip_space(self) -> None:
        while (character := self.next()) and character in " \t\r\n":
            self.position += 1

    def take(self, wanted: str) -> None:
        found = self.next()
        if found != wanted:
            raise DataError(
                f"{self._file.name}: expected {wanted!r} between the items of a JSON array, got"
                f" {found or 'the end of the file'}; the file is cut or damaged"
            )
        self.position += 1

    def value(self, number: int) -> Any:
        """Return the JSON value at the position, reading on in doubling steps while it is not complete."""
        size_bytes = _CHUNK_BYTES
        while True:
            try:
                value, end = self._decode_at_position()
                if end < len(self._text) or self._at_end:  # a number could go on behind the window's end
                    self.position = end
                    return value
            except (json.JSONDecodeError, RecursionError) as error:
                if self._at_end or len(self._text) - self.position > MAX_ROW_BYTES or isinstance(error, RecursionError):
                    raise self._damaged(number, error) from error
            self._more(size_bytes)
            size_bytes *= 2

    def _decode_at_position(self) -> tuple[Any, int]:
        try:
            return strict_json.DECODER.raw_decode(self._text, self.position)
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # NaN, a key given twice, a huge number: lax JSON tells where the item ends
            _, end = json.JSONDecoder(parse_int=str).raw_decode(self._text, self.position)
            return RowProblem("invalid JSON", "", "one JSON value", str(error)), end

    def _damaged(self, number: int, error: Exception) -> DataError:
        reason = strict_json.reason(error, self.position) if isinstance(error, ValueError) else "nested too deeply"
        found = self._text[self.position : self.position + 60]
        return DataError(
            f"{self._file.name}: row {number}: expected a JSON value of at most {MAX_ROW_BYTES} bytes, found {found!r}"
            f" ({reason}); rows behind it cannot be found"
        )


def _parquet_rows(file: DataFile, compression: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    source: Any = file.path
    if compression:
        with io.BufferedReader(io.FileIO(file.path)) as raw:
            source = pa.BufferReader(_decompressed(raw, compression, file).read())
    number = 0
    try:
        with parquet.ParquetFile(source, page_checksum_verification=True) as table:
            groups = (table.metadata.row_group(index) for index in range(table.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _max_plain_bytes(file):
                raise _bomb(file)
            schema = readable_schema(table.schema_arrow, file.name)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for value in cast(Iterable[Any], batch.cast(schema).to_pylist(maps_as_pydicts="strict")):
                    number += 1
                    yield number, value
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # KeyError: a map has a key twice
        raise DataError(
            f"{file.name}: expected a parquet file, got one that fails behind row {number}"
            f" ({str(error)[:160]}); download it again"
        ) from error
    if number == 0:
        raise DataError(
            f"{file.name}: expected at least one row, got an empty parquet file; take it out of the source or"
            " download it again"
        )
