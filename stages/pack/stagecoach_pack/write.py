"""Writes one split of the packed format: documents pack after pack, in the order of the packing plan."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach.formats.packed import DOCUMENT, BitWriter, pack_records, plan_sha256
from stagecoach.outputs import Output
from stagecoach.recipe.pack import PackConfig
from stagecoach_pack.documents import DocumentStore
from stagecoach_pack.packing import plan_packs
from stagecoach_pack.scratch import make_room
from stagecoach_pack.spool import Spool

_RECORDS_AT_ONCE = 1 << 16


@dataclass(slots=True)
class Split:
    """One written split.

    Attributes:
        documents: DOCUMENT records in stored order.
        packs: PACK records.
        targets: Trained tokens of each document.
        plan_sha256: Digest of which document lies where.
    """

    documents: npt.NDArray[Any]
    packs: npt.NDArray[Any]
    targets: npt.NDArray[np.uint32]
    plan_sha256: str

    def summary(self, pack_tokens: int) -> dict[str, Any]:
        """Return the split's entry in ``packed.json``."""
        num_tokens = int(self.documents["num_tokens"].sum(dtype=np.int64))
        slots = len(self.packs) * pack_tokens
        return {
            "num_packs": len(self.packs),
            "num_documents": len(self.documents),
            "num_tokens": num_tokens,
            "num_trained_tokens": int(self.targets.sum(dtype=np.int64)),
            "fill": num_tokens / slots if slots else 0.0,
            "max_documents_in_pack": int(self.packs["num_documents"].max()) if len(self.packs) else 0,
            "plan_sha256": self.plan_sha256,
        }


def write_split(
    output: Output,
    name: str,
    documents: npt.NDArray[np.uint32],
    copies: npt.NDArray[np.uint16],
    store: DocumentStore,
    spool: Spool,
    pack: PackConfig,
) -> Split:
    """Plan the packs of one split and write its files.

    Args:
        output: Where they go, below ``name``/.
        name: ``train`` or ``heldout``.
        documents: Numbers of the split's documents in ``store``; a document with two copies stands here twice.
        copies: Which copy each of them is, from 0.
        store: The tokenised documents.
        spool: The conversations they come from.
        pack: The recipe's pack section.
    """
    order, num_documents = plan_packs(
        store.lengths[documents], pack.pack_tokens, pack.max_documents_per_pack, pack.seed
    )
    documents, copies = documents[order], copies[order]
    del order
    records = _mapped_records(output.scratch / f"{name}.documents", len(documents))
    first_token = id_offset = 0
    with output.create(f"{name}/ids.bin") as ids, output.create(f"{name}/documents.bin") as stream:
        for first in range(0, len(documents), _RECORDS_AT_ONCE):
            part = slice(first, first + _RECORDS_AT_ONCE)
            identities = spool.identities(store.conversations[documents[part]].astype(np.int64))
            made = _records(documents[part], copies[part], store, spool)
            made["first_token"] += np.uint64(first_token)
            made["id_offset"] = id_offset + np.cumsum([0, *map(len, identities)])[:-1]
            first_token += int(made["num_tokens"].sum(dtype=np.uint64))
            id_offset += ids.write(b"".join(identities))
            stream.write(made.data.cast("B"))
            records[part] = made
    with ExitStack() as open_files:
        tokens_stream = open_files.enter_context(output.create(f"{name}/tokens.bin"))
        bits = open_files.enter_context(BitWriter(open_files.enter_context(output.create(f"{name}/trained.bits"))))
        for tokens, trained in store.chunks(documents):
            tokens_stream.write(tokens.tobytes())
            bits.write(trained)
    targets = store.targets[documents]
    packs = pack_records(records, num_documents, targets)
    output.write_bytes(f"{name}/packs.bin", packs.tobytes())
    return Split(records, packs, targets, plan_sha256(records, packs))


def _mapped_records(path: Path, number: int) -> npt.NDArray[Any]:
    """Return room for DOCUMENT records in a file without a name, so that they take no memory of the process."""
    if number == 0:
        return np.zeros(0, DOCUMENT)
    with open(path, "w+b") as file:
        make_room(file.fileno(), number * DOCUMENT.itemsize)
        mapped = np.memmap(file, DOCUMENT, "r+", shape=(number,)).view(np.ndarray)
    path.unlink()
    return mapped


def _records(
    documents: npt.NDArray[np.uint32], copies: npt.NDArray[np.uint16], store: DocumentStore, spool: Spool
) -> npt.NDArray[Any]:
    """Return the DOCUMENT records of documents in stored order, all but the ids' offsets; tokens count from 0."""
    lengths, conversations = store.lengths[documents], store.conversations[documents]
    records = np.zeros(len(documents), DOCUMENT)
    records["first_token"] = np.cumsum(lengths, dtype=np.uint64) - lengths
    records["num_tokens"] = lengths
    records["skipped_tokens"] = store.skipped[documents]
    records["flags"] = store.flags[documents]
    records["copy"] = copies
    records["row"] = spool.rows[conversations]
    records["source"] = spool.sources[conversations]
    records["file"] = spool.files[conversations]
    records["digest"] = np.ascontiguousarray(spool.digests[conversations]).view("V16").reshape(-1)
    return records
