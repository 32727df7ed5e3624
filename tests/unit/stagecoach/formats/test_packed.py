"""The packed format, byte for byte: two packs of three documents written by hand and read back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from stagecoach.errors import CorruptObjectError
from stagecoach.formats.packed import DOCUMENT, PACK, BitWriter, PackedSplit, pack_records, plan_sha256, token_dtype

# pack 0 (6 slots): document 0 = 10 11 12 (12 trained), document 1 = 20 21 (21 trained), 1 free slot
# pack 1: document 2 = 30 31 32 33 34 35 (32 33 trained), no free slot
TOKENS = bytes.fromhex("0a000b000c00140015001e001f002000210022002300")
BITS = bytes.fromhex("9401")  # bits 2, 4, 7, 8 -> 0b1_1001_0100, least significant first
DOCUMENTS = bytes.fromhex(
    # first_token      row                id_offset          digest .. tokens, skipped, source, file, copy, flags
    "000000000000000001000000000000000000000000000000000102030405060708090a0b0c0d0e0f03000000000000000000000000000000"
    "030000000000000009000000000000000200000000000000101112131415161718191a1b1c1d1e1f02000000000000000100010000000000"
    "050000000000000002000000000000000200000000000000202122232425262728292a2b2c2d2e2f06000000060000000000000001000100"
)  # fmt: skip
PACKS = bytes.fromhex(
    # first_document     sum_squares        documents  tokens     targets    longest
    "00000000000000000d0000000000000002000000050000000200000003000000"
    "0200000000000000240000000000000001000000060000000200000006000000"
)  # fmt: skip
DESCRIPTION = {
    "format": "stagecoach-packed",
    "format_version": 1,
    "pack_tokens": 6,
    "pad_id": 7,
    "token_dtype": "<u2",
    "sources": ["demo", "more"],
    "files": ["demo/chat.jsonl", "more/a.json"],
    "splits": {"train": {"num_packs": 2, "num_documents": 3, "num_tokens": 11}},
}


class Folder:
    """Files of a packed output in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "train").mkdir()
        (root / "packed.json").write_text(json.dumps(DESCRIPTION))
        files = {
            "tokens.bin": TOKENS,
            "trained.bits": BITS,
            "documents.bin": DOCUMENTS,
            "packs.bin": PACKS,
            "ids.bin": b"id",
        }
        for name, data in files.items():
            (root / "train" / name).write_bytes(data)

    def path(self, name: str) -> Path:
        return self.root / name

    def read_bytes(self, name: str) -> bytes:
        return self.path(name).read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_records_have_the_documented_sizes() -> None:
    assert (DOCUMENT.itemsize, PACK.itemsize) == (56, 32)


def test_a_pack_with_a_free_slot_ends_with_padding(folder: Folder) -> None:
    pack = PackedSplit.open(folder, "train").pack(0)
    assert pack.tokens.tolist() == [10, 11, 12, 20, 21, 7]
    assert pack.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert pack.trained.tolist() == [False, False, True, False, True, False]
    assert pack.document_starts.tolist() == [0, 3]
    assert pack.document_ids.tolist() == [0, 1]
    assert pack.num_document_tokens == 5
    assert (pack.tokens.dtype, pack.positions.dtype, pack.document_starts.dtype) == (np.dtype(np.int32),) * 3


def test_bits_of_a_pack_may_begin_inside_a_byte(folder: Folder) -> None:
    pack = PackedSplit.open(folder, "train").pack(1)
    assert pack.tokens.tolist() == [30, 31, 32, 33, 34, 35]
    assert pack.trained.tolist() == [False, False, True, True, False, False]
    assert pack.document_starts.tolist() == [0]


def test_the_split_knows_its_sizes(folder: Folder) -> None:
    split = PackedSplit.open(folder, "train")
    assert (split.num_packs, split.num_documents) == (2, 3)
    assert split.max_documents_per_pack == 3  # two documents and the padding of pack 0
    assert split.document_sources == ["demo", "more", "demo"]
    assert split.document_hashes[0] == "000102030405060708090a0b0c0d0e0f"


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="asks Linux which pages were read")
def test_reading_one_pack_touches_only_its_bytes(folder: Folder) -> None:
    pack_tokens, num_packs = 65_536, 512  # 64 MiB of tokens
    documents, packs = np.zeros(num_packs, DOCUMENT), np.zeros(num_packs, PACK)
    documents["first_token"], documents["num_tokens"] = np.arange(num_packs) * pack_tokens, pack_tokens
    packs["first_document"], packs["num_documents"], packs["num_tokens"] = np.arange(num_packs), 1, pack_tokens
    split = {"num_packs": num_packs, "num_documents": num_packs, "num_tokens": num_packs * pack_tokens}
    description = {**DESCRIPTION, "pack_tokens": pack_tokens, "splits": {"train": split}}
    folder.path("packed.json").write_text(json.dumps(description))
    for name, data in (("documents.bin", documents.tobytes()), ("packs.bin", packs.tobytes())):
        folder.path(f"train/{name}").write_bytes(data)
    folder.path("train/tokens.bin").write_bytes(bytes(2 * num_packs * pack_tokens))
    folder.path("train/trained.bits").write_bytes(bytes(num_packs * pack_tokens // 8))
    opened = PackedSplit.open(folder, "train")
    before = resident_bytes(folder.path("train/tokens.bin"))
    assert len(opened.pack(40).tokens) == pack_tokens
    read = resident_bytes(folder.path("train/tokens.bin")) - before
    assert before == 0
    # The kernel maps around a page what it holds together: 64 KiB, or a large page of 2 MiB.
    assert 2 * pack_tokens <= read <= 2 * pack_tokens + 2 * 2**21


def resident_bytes(file: Path) -> int:
    """Return how much of this process's mapping of a file was touched."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    mapped = text[text.index(str(file)) :]
    return 1024 * int(mapped[mapped.index("\nRss:") :].split()[1])


def test_a_document_is_traced_to_its_row(folder: Folder) -> None:
    split = PackedSplit.open(folder, "train")
    assert split.trace(0) == {
        "source": "demo",
        "file": "demo/chat.jsonl",
        "row": 1,
        "id": "id",
        "digest": "000102030405060708090a0b0c0d0e0f",
        "skipped_tokens": 0,
        "copy": 0,
    }
    assert (split.trace(1)["file"], split.trace(1)["row"], split.trace(1)["id"]) == ("more/a.json", 9, "")
    assert (split.trace(2)["skipped_tokens"], split.trace(2)["copy"]) == (6, 1)
    assert split.document_tokens(1).tolist() == [20, 21]
    assert split.document_trained(2).tolist() == [False, False, True, True, False, False]


def test_a_pack_that_is_not_there_is_named(folder: Folder) -> None:
    with pytest.raises(IndexError, match="train: expected a pack from 0 to 1, got 2"):
        PackedSplit.open(folder, "train").pack(2)


def test_an_empty_split_has_no_packs(folder: Folder) -> None:
    for name in ("tokens.bin", "trained.bits", "documents.bin", "packs.bin", "ids.bin"):
        folder.path(f"train/{name}").write_bytes(b"")
    empty = {"num_packs": 0, "num_documents": 0, "num_tokens": 0}
    folder.path("packed.json").write_text(json.dumps({**DESCRIPTION, "splits": {"train": empty}}))
    split = PackedSplit.open(folder, "train")
    assert (split.num_packs, split.max_documents_per_pack) == (0, 0)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train/tokens.bin", TOKENS[:-2], "expected num_tokens 11 as in packed.json, got 10"),
        ("train/tokens.bin", TOKENS[:-1], "expected a multiple of 2 bytes, got 21"),
        ("train/documents.bin", DOCUMENTS[:56], "expected num_documents 3 as in packed.json, got 1"),
        ("train/packs.bin", PACKS[:33], "expected a multiple of 32 bytes, got 33"),
        ("train/trained.bits", BITS[:1], "expected one bit for each of 11 tokens, got 1 bytes"),
        ("packed.json", b"{}", r"expected format stagecoach-packed version 1, got \(None, None\)"),
        ("packed.json", b"[]", "expected format stagecoach-packed version 1, got None"),
        ("packed.json", b"{", "packed.json: expected JSON"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(folder: Folder, name: str, data: bytes, message: str) -> None:
    folder.path(name).write_bytes(data)
    with pytest.raises(CorruptObjectError, match=message):
        PackedSplit.open(folder, "train")


def test_pack_records_count_tokens_squares_and_targets() -> None:
    documents = np.frombuffer(DOCUMENTS, DOCUMENT)
    assert pack_records(documents, [2, 1], np.array([1, 1, 2])).tobytes() == PACKS


def test_the_plan_changes_with_the_order_of_documents_only() -> None:
    documents, packs = np.frombuffer(DOCUMENTS, DOCUMENT), np.frombuffer(PACKS, PACK)
    other_rows = documents.copy()
    other_rows["row"] = 5
    assert plan_sha256(documents, packs) == plan_sha256(other_rows, packs)
    assert plan_sha256(documents, packs) != plan_sha256(documents[::-1], packs)


@pytest.mark.parametrize("cuts", [[9], [3, 6], [1] * 9, [8, 1]])
def test_bits_written_in_pieces_are_the_same_bytes(cuts: list[int]) -> None:
    bits = np.array([0, 0, 1, 0, 1, 0, 0, 1, 1])
    stream = io.BytesIO()
    with BitWriter(stream) as writer:
        for piece in np.split(bits, np.cumsum(cuts)[:-1]):
            writer.write(piece)
    assert stream.getvalue() == BITS


@pytest.mark.parametrize(("vocab_size", "dtype"), [(32_002, "<u2"), (65_536, "<u2"), (65_537, "<i4"), (128_258, "<i4")])
def test_tokens_are_stored_in_the_narrowest_type(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).str == dtype
