"""What packing found, as numbers: the same figures go to ``report.json``, the HTML page and the manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach_pack.collect import Collected
from stagecoach_pack.mixing import Selection
from stagecoach_pack.packing import best_fit_decreasing, permutation
from stagecoach_pack.spool import Spool
from stagecoach_pack.tokens import TokenCounts
from stagecoach_pack.write import Split

_DESCRIBED = ("pack_tokens", "max_documents_per_pack", "chat_format", "bos_id", "train_on", "seed", "vocab_size")
_SAMPLE_PACKS = 10
_SAMPLE_DOCUMENTS = 200
_MOST_HISTOGRAM_BINS = 24


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one packing, as plain JSON values in ``values``."""

    values: dict[str, Any]

    def to_json(self) -> bytes:
        """Return the figures as indented JSON."""
        return (json.dumps(self.values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")

    def summary(self) -> dict[str, Any]:
        """Return the short form that stands in the manifest."""
        train, heldout = self.values["splits"]["train"], self.values["splits"]["heldout"]
        return {
            "num_packs": train["num_packs"],
            "num_documents": train["num_documents"],
            "num_tokens": train["num_tokens"],
            "num_trained_tokens": train["num_trained_tokens"],
            "fill": train["fill"],
            "max_documents_in_pack": train["max_documents_in_pack"],
            "plan_sha256": train["plan_sha256"],
            "heldout_packs": heldout["num_packs"],
            "heldout_documents": heldout["num_documents"],
            "heldout_trained_tokens": heldout["num_trained_tokens"],
            "pack_tokens": self.values["pack_tokens"],
            "chat_format": self.values["chat_format"],
            "bos_id": self.values["bos_id"],
            "rows_read": sum(row["rows_read"] for row in self.values["sources"]),
            "bad_rows": sum(sum(row["bad_rows"].values()) for row in self.values["sources"]),
            "sources": {row["name"]: row["documents"] for row in self.values["sources"]},
        }


def make_report(
    config: PackTaskConfig,
    description: Mapping[str, Any],
    collected: Collected,
    selection: Selection,
    spool: Spool,
    splits: Mapping[str, Split],
    token_counts: TokenCounts,
    cut_counts: Counter[str],
) -> Report:
    """Put all figures of one packing together.

    Args:
        config: The stage's config.
        description: Content of ``packed.json``.
        collected: Counts and bad rows of reading.
        selection: What became of each conversation.
        spool: The conversations.
        splits: The written splits.
        token_counts: Counts of tokenising.
        cut_counts: Counts of cutting.
    """
    values = {name: description[name] for name in _DESCRIBED} | {
        "name": config.data.name,
        "splits": description["splits"],
        "sources": _source_rows(config, collected, selection, spool, splits, token_counts),
        "tokens": {
            "crossing_header_and_content": token_counts.crossing_tokens,
            "control_strings_in_content_kept_as_text": token_counts.literal_control_strings,
            "conversations_with_tools_as_text": token_counts.tools_as_text,
        },
        "too_long": {
            "rule": config.pack.too_long,
            "conversations": cut_counts["too_long"],
            "pieces": cut_counts["pieces"],
            "tokens_dropped": cut_counts["tokens_dropped"],
        },
        "histogram": _histogram(splits["train"], config.pack.pack_tokens),
        "pack_fill": _fill(splits["train"], config),
        "bad_row_examples": [line for problems in collected.problems for line in problems.examples],
        "sample_packs": _sample_packs(splits["train"], description, config.pack.seed),
    }
    return Report(values)


def _source_rows(
    config: PackTaskConfig,
    collected: Collected,
    selection: Selection,
    spool: Spool,
    splits: Mapping[str, Split],
    token_counts: TokenCounts,
) -> list[dict[str, Any]]:
    train, heldout = splits["train"], splits["heldout"]
    rows = []
    for number, (source, counts) in enumerate(zip(config.data.sources, collected.counts, strict=True)):
        members = spool.sources == number
        mine = train.documents["source"] == number
        lengths = train.documents["num_tokens"][mine].astype(np.int64)
        rows.append(
            {
                "name": source.name,
                "format": counts.row_format,
                "files": counts.files,
                "ignored_files": counts.ignored_files,
                "rows_read": counts.rows_read,
                "bad_rows": counts.bad_rows,
                "left_after": counts.left_after,
                "usable": counts.rows_usable,
                "duplicates": int((selection.duplicate & members).sum()),
                "held_out": int((selection.held_out & members).sum()),
                "not_sampled": int(
                    (members & ~selection.duplicate & ~selection.held_out & (selection.copies == 0)).sum()
                ),
                "weight": source.weight,
                "without_targets": token_counts.without_targets[source.name],
                "documents": int(mine.sum()),
                "tokens": int(lengths.sum()),
                "trained_tokens": int(train.targets[mine].sum()),
                "mean_tokens": float(lengths.mean()) if len(lengths) else 0.0,
                "longest_tokens": int(lengths.max()) if len(lengths) else 0,
                "heldout_documents": int((heldout.documents["source"] == number).sum()),
            }
        )
    return rows


def _histogram(split: Split, pack_tokens: int) -> list[dict[str, int]]:
    """Return documents by length, in bins whose borders double twice as slowly as powers of two."""
    lengths = split.documents["num_tokens"].astype(np.int64)
    borders = sorted({round(pack_tokens / 2 ** (step / 2)) for step in range(_MOST_HISTOGRAM_BINS)} | {0})
    counts, _ = np.histogram(lengths, bins=[border + 0.5 for border in borders])
    return [
        {"from_tokens": low + 1, "to_tokens": high, "documents": int(count)}
        for low, high, count in zip(borders, borders[1:], counts.tolist(), strict=False)
    ]


def _fill(split: Split, config: PackTaskConfig) -> dict[str, Any]:
    """Say how full the packs are, and how many fewer there would be without the limit on documents."""
    limit = config.pack.max_documents_per_pack
    limited = int((split.packs["num_documents"] >= limit).sum())
    lengths = split.documents["num_tokens"].astype(np.int64)
    unlimited = len(split.packs)
    if limited:
        unlimited = int(best_fit_decreasing(lengths, config.pack.pack_tokens, len(lengths)).max()) + 1
    used = split.packs["num_tokens"].astype(np.int64)
    return {
        "packs_at_document_limit": limited,
        "packs_without_document_limit": unlimited,
        "least_tokens_in_a_pack": int(used.min()) if len(used) else 0,
        "lower_bound_packs": int(-(-int(lengths.sum()) // config.pack.pack_tokens)),
    }


def _sample_packs(split: Split, description: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    number = min(_SAMPLE_PACKS, len(split.packs))
    samples = []
    for index in np.sort(permutation(len(split.packs), seed, "sample packs")[:number]).tolist():
        pack = split.packs[index]
        first, count = int(pack["first_document"]), int(pack["num_documents"])
        documents = split.documents[first : first + min(count, _SAMPLE_DOCUMENTS)]
        samples.append(
            {
                "pack": index,
                "num_documents": count,
                "num_tokens": int(pack["num_tokens"]),
                "num_targets": int(pack["num_targets"]),
                "documents": [
                    {
                        "source": description["sources"][int(record["source"])],
                        "file": description["files"][int(record["file"])],
                        "row": int(record["row"]),
                        "num_tokens": int(record["num_tokens"]),
                        "num_targets": int(targets),
                    }
                    for record, targets in zip(documents, split.targets[first : first + len(documents)], strict=True)
                ],
            }
        )
    return samples
