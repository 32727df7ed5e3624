"""The pack stage: chat files and the final tokenizer -> packs of tokens with trained bits, and a report about them.

read and check every row -> duplicates out -> hold out -> mix -> render, tokenise, label, cut -> plan packs -> write

What mixing takes whole (no ``rows``, no ``weight`` below 1) is tokenised while the rows behind it are still read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError
from stagecoach.formats.packed import FORMAT, FORMAT_VERSION, PACKED_JSON, token_dtype
from stagecoach.formats.tokenizer import TOKENIZER_FILES, ChatTokenizer
from stagecoach.outputs import Input, Output
from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach.storage.base import ObjectStore
from stagecoach_pack.chat import Renderer
from stagecoach_pack.collect import Rate, collect, refuse_bad_rows
from stagecoach_pack.cutting import Cutter
from stagecoach_pack.documents import DocumentStore
from stagecoach_pack.labels import Labeller
from stagecoach_pack.mixing import Selection, select, takes_all
from stagecoach_pack.report import Report, make_report
from stagecoach_pack.report_page import report_page
from stagecoach_pack.sources.readers import DataFile
from stagecoach_pack.spool import Spool
from stagecoach_pack.tokens import Tokenising
from stagecoach_pack.write import Split, write_split

_log = logging.getLogger("stagecoach.pack")


def run(config: PackTaskConfig, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    """Pack the data of ``inputs["data-<source>"]`` with the tokenizer of ``inputs["tokenizer"]``.

    Args:
        config: The recipe's data and pack sections.
        inputs: ``tokenizer``, and one ``data-<source name>`` for each source.
        output: Gets ``packed.json``, ``train/``, ``heldout/``, ``report.json``, ``report.html``.
        store: Named in what is logged.

    Raises:
        DataError: Rows, files or the tokenizer do not fit; the sentence says which and why.
    """
    scratch = output.scratch / "pack"
    try:
        tokenizer = open_tokenizer(inputs["tokenizer"])
        with (
            closing(Spool(scratch)) as spool,
            closing(DocumentStore(scratch, token_dtype(tokenizer.vocab_size))) as documents,
        ):
            report = _pack(config, tokenizer, data_files(config, inputs), spool, documents, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    output.write_bytes("report.json", report.to_json())
    output.write_bytes("report.html", report_page(report))
    output.summary = report.summary()
    where = f"{store.url.rstrip('/')}/{output.prefix}"
    for row in report.values["sources"]:
        steps = "".join(f", {left} {name}" for name, left in row["left_after"].items())
        _log.info("%s: %d rows%s", row["name"], row["rows_read"], steps)
        _log.info("Saved %d examples to %s", row["documents"] + row["heldout_documents"], where)
    train = report.values["splits"]["train"]
    _log.info("Packed %d documents into %d packs", train["num_documents"], train["num_packs"])


def open_tokenizer(tokenizer: Input) -> ChatTokenizer:
    """Load the final tokenizer that ``download`` made."""
    names = [name for name in tokenizer.names() if name in TOKENIZER_FILES]
    return ChatTokenizer({name: tokenizer.read_bytes(name) for name in names}, tokenizer.prefix)


def data_files(config: PackTaskConfig, inputs: Mapping[str, Input]) -> dict[str, list[DataFile]]:
    """Return the files of each source, in the order of their names."""
    found: dict[str, list[DataFile]] = {}
    for source in config.data.sources:
        data = inputs[f"data-{source.name}"]
        found[source.name] = [DataFile(name, data.path(name)) for name in data.names()]
    return found


def _pack(
    config: PackTaskConfig,
    tokenizer: ChatTokenizer,
    files: Mapping[str, Sequence[DataFile]],
    spool: Spool,
    documents: DocumentStore,
    output: Output,
) -> Report:
    bos_id = tokenizer.id_of(tokenizer.special.bos or "") if tokenizer.begins_with_bos else None
    cutter = Cutter(config.pack.pack_tokens, config.pack.too_long, bos_id)
    renderer, labeller = Renderer(tokenizer, config.pack.train_on), Labeller(tokenizer)
    names = [source.name for source in config.data.sources]
    with Tokenising(spool, renderer, labeller, cutter, documents, names) as work:
        collected = collect(config.data, files, spool, lambda rows, note: output.progress(1, 10, note), work.add)
        duplicate = spool.duplicates & config.data.remove_duplicates
        selection = select(config.data.sources, spool.sources, spool.digests, spool.sides, duplicate, config.pack)
        _tokenise_sampled(config, spool, selection, work, output)
        work.finish()
    for found, later in zip(collected.problems, work.problems, strict=True):
        found.join(later)
    refuse_bad_rows(config.data, collected)
    if not np.any(selection.copies[documents.conversations]):
        raise DataError(
            f"data: expected conversations to train on, got none: all {int(np.sum(selection.copies > 0))} are longer than"
            f" pack.pack_tokens = {config.pack.pack_tokens} or hold nothing to train; raise it, or set pack.too_long to split"
        )
    splits = {
        name: write_split(output, name, *_members(documents, copies), documents, spool, config.pack)
        for name, copies in (("train", selection.copies), ("heldout", selection.held_out.astype(np.uint16)))
    }
    description = _description(config, tokenizer, spool, bos_id, splits)
    output.write_bytes(PACKED_JSON, (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())
    return make_report(config, description, collected, selection, spool, splits, work.counts, cutter.counts)


def _tokenise_sampled(
    config: PackTaskConfig, spool: Spool, selection: Selection, work: Tokenising, output: Output
) -> None:
    """Tokenise what was chosen of the sources of which not all is taken."""
    sampled = [number for number, source in enumerate(config.data.sources) if not takes_all(source)]
    is_chosen = (selection.copies > 0) | selection.held_out
    chosen = np.flatnonzero(is_chosen & np.isin(spool.sources, sampled))
    sources, rate = spool.sources[chosen].tolist(), Rate()
    for done, (index, source, talk) in enumerate(
        zip(chosen.tolist(), sources, spool.conversations(chosen), strict=True), 1
    ):
        work.add(index, source, talk)
        if done % 1000 == 0:
            note = f"tokenised {done} of {len(chosen)} sampled conversations, {rate.of(done)}"
            output.progress(len(chosen) + 8 * done, 10 * len(chosen), note)


def _members(
    documents: DocumentStore, copies: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """Return the documents of a split in the order of their conversations, each as often as its conversation has
    copies, and the number of each copy.
    """
    times = copies[documents.conversations]
    members = np.repeat(np.arange(len(times), dtype=np.uint32), times)
    numbers = np.zeros(len(members), np.uint16)
    for number in range(1, int(times.max(initial=0))):
        numbers[np.searchsorted(members, np.flatnonzero(times > number).astype(np.uint32)) + number] = number
    conversations = documents.conversations
    if np.any(conversations[1:] < conversations[:-1]):  # sampled sources come last
        order = np.argsort(conversations[members], kind="stable")
        members, numbers = members[order], numbers[order]
    return members, numbers


def _description(
    config: PackTaskConfig, tokenizer: ChatTokenizer, spool: Spool, bos_id: int | None, splits: Mapping[str, Split]
) -> dict[str, Any]:
    """Return the content of ``packed.json``."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pack_tokens": config.pack.pack_tokens,
        "max_documents_per_pack": config.pack.max_documents_per_pack,
        "token_dtype": token_dtype(tokenizer.vocab_size).str,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.id_of(tokenizer.special.pad or "") or 0,
        "bos_id": bos_id,
        "chat_format": "chatml" if tokenizer.is_chatml else "tokenizer",
        "chat_template_sha256": hashlib.sha256(tokenizer.template.source.encode()).hexdigest(),
        "tokenizer_sha256": tokenizer.sha256,
        "train_on": config.pack.train_on,
        "too_long": config.pack.too_long,
        "seed": config.pack.seed,
        "sources": [source.name for source in config.data.sources],
        "files": spool.file_names,
        "splits": {name: split.summary(config.pack.pack_tokens) for name, split in splits.items()},
    }
