"""The pack report as one static HTML page: no script, no outside file, pictures as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from stagecoach_pack.report import Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9d9e0; --bar: #3e63dd; --back: #fcfcfd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --bar: #849dff; --back: #111113; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.note { color: var(--soft); margin: .2rem 0 .8rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; background:
  linear-gradient(to left, var(--back) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--soft), transparent) right / .5rem 100% no-repeat; } /* a shadow where more follows */
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
dl div { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
svg { width: 100%; min-width: 38rem; height: auto; } svg text { fill: var(--soft); font: 14px system-ui, sans-serif; }
p.note i { display: inline-block; width: .8em; height: .8em; margin-left: .6em; }
svg .bar { fill: var(--bar); } svg .free { fill: none; stroke: var(--line); }
ul.problems { font: 13px/1.5 ui-monospace, monospace; padding-left: 1.2rem; overflow-wrap: anywhere; }
"""
_PACK_COLOURS = ("#3e63dd", "#30a46c", "#e5484d", "#f76b15", "#8e4ec6", "#12a594", "#d6409f", "#ffb224")


def report_page(report: Report) -> bytes:
    """Return the page as UTF-8."""
    values = report.values
    train, heldout = values["splits"]["train"], values["splits"]["heldout"]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Packs of {escape(values["name"])}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>Packs of {escape(values['name'])}</h1>",
        _settings(values),
        _figures(
            [
                ("packs", _number(train["num_packs"])),
                ("documents", _number(train["num_documents"])),
                ("tokens", _number(train["num_tokens"])),
                ("fill", f"{train['fill']:.3%}"),
                ("trained share", _share(train["num_trained_tokens"], train["num_tokens"])),
                ("held-out documents", _number(heldout["num_documents"])),
            ]
        ),
        "<h2>Length of documents</h2>",
        _histogram(values["histogram"]),
        "<h2>Sources</h2>",
        _sources(values["sources"]),
        _filters(values["sources"]),
        "<h2>Rows that do not fit</h2>",
        _bad_rows(values),
        "<h2>Ten packs</h2>",
        '<p class="note">A row is a pack and how many documents it holds, a block a document, coloured by source.</p>',
        _packs(values["sample_packs"], [row["name"] for row in values["sources"]], values["pack_tokens"]),
        "<h2>Fill</h2>",
        _fill(values),
        "</body></html>",
    ]
    return "\n".join(parts).encode("utf-8")


def _settings(values: dict[str, Any]) -> str:
    shown = (
        f"{_number(values['pack_tokens'])} tokens a pack",
        f"chat format {values['chat_format']}",
        f"trained on: {values['train_on']}",
        f"too long: {values['too_long']['rule']}",
        f"seed {values['seed']}",
    )
    return f'<p class="note">{escape(", ".join(shown))}</p>'


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0"


def _figures(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in pairs) + "</dl>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _histogram(bins: Sequence[dict[str, int]]) -> str:
    filled = [index for index, row in enumerate(bins) if row["documents"]]
    if not filled:
        return '<p class="note">no documents</p>'
    shown = bins[filled[0] : filled[-1] + 1]
    most = max(row["documents"] for row in shown)
    width, height, step = 960, 220, 960 / len(shown)
    parts = [
        '<div class="scroll">',
        f'<svg viewBox="0 0 {width} {height + 36}" role="img" aria-label="documents by length in tokens">',
    ]
    for index, row in enumerate(shown):
        tall = round(row["documents"] / most * (height - 20), 1)
        left = round(index * step, 1)
        title = f"{row['from_tokens']} to {row['to_tokens']} tokens: {row['documents']} documents"
        parts.append(
            f'<rect class="bar" x="{left + 1}" y="{height - tall}" width="{round(step - 2, 1)}"'
            f' height="{tall}"><title>{title}</title></rect>'
            f'<text x="{round(left + step / 2, 1)}" y="{height - tall - 4}"'
            f' text-anchor="middle">{row["documents"]}</text>'
            f'<text x="{round(left + step, 1)}" y="{height + 14}" text-anchor="end">{row["to_tokens"]}</text>'
        )
    parts.append(
        f'<text x="0" y="{height + 32}">documents by length; a bar ends at the number of tokens below it</text></svg></div>'
    )
    return "".join(parts)


def _sources(rows: Sequence[dict[str, Any]]) -> str:
    head = (
        "source",
        "form",
        "rows",
        "bad",
        "duplicates",
        "held out",
        "not taken",
        "weight",
        "no target",
        "documents",
        "tokens",
        "trained",
        "mean",
        "longest",
    )
    return _table(
        head,
        [
            (
                row["name"],
                row["format"],
                _number(row["rows_read"]),
                _number(sum(row["bad_rows"].values())),
                _number(row["duplicates"]),
                _number(row["held_out"]),
                _number(row["not_sampled"]),
                f"{row['weight']:g}",
                _number(row["without_targets"]),
                _number(row["documents"]),
                _number(row["tokens"]),
                _share(row["trained_tokens"], row["tokens"]),
                f"{row['mean_tokens']:.1f}",
                _number(row["longest_tokens"]),
            )
            for row in rows
        ],
    )


def _filters(rows: Sequence[dict[str, Any]]) -> str:
    tables = [
        f"<h2>Rows of {escape(row['name'])} after each filter</h2>"
        + _table(
            ("step", "rows left"),
            [("read", _number(row["rows_read"])), *((name, _number(left)) for name, left in row["left_after"].items())],
        )
        for row in rows
        if row["left_after"]
    ]
    return "".join(tables)


def _bad_rows(values: dict[str, Any]) -> str:
    long, tokens = values["too_long"], values["tokens"]
    rows = [
        (reason, source["name"], _number(count))
        for source in values["sources"]
        for reason, count in source["bad_rows"].items()
    ]
    examples = "".join(f"<li>{escape(line)}</li>" for line in values["bad_row_examples"])
    figures = [
        ("longer than a pack", _number(long["conversations"])),
        ("pieces they became", _number(long["pieces"])),
        ("tokens left out", _number(long["tokens_dropped"])),
        ("tokens across header and content", _number(tokens["crossing_header_and_content"])),
        ("control strings kept as text", _number(tokens["control_strings_in_content_kept_as_text"])),
        ("tools written as text", _number(tokens["conversations_with_tools_as_text"])),
    ]
    dropped = _table(("reason", "source", "rows"), rows) if rows else '<p class="note">no bad rows</p>'
    return _figures(figures) + dropped + (f'<ul class="problems">{examples}</ul>' if examples else "")


def _packs(samples: Sequence[dict[str, Any]], names: Sequence[str], pack_tokens: int) -> str:
    width, row_height = 960, 26
    parts = [
        '<div class="scroll">',
        f'<svg viewBox="0 0 {width} {row_height * len(samples) + 24}" role="img" aria-label="sample packs">',
    ]
    scale = (width - 120) / pack_tokens
    colours = {name: _PACK_COLOURS[index % len(_PACK_COLOURS)] for index, name in enumerate(names)}
    for place, sample in enumerate(samples):
        top = place * row_height + 2
        parts.append(f'<text x="0" y="{top + 14}">pack {sample["pack"]}: {sample["num_documents"]}</text>')
        parts.append(f'<rect class="free" x="120" y="{top}" width="{width - 121}" height="20"/>')
        at = 0
        for document in sample["documents"]:
            origin = f"{document['file']} row {document['row']}"
            title = f"{origin}: {document['num_tokens']} tokens, {document['num_targets']} trained"
            left, wide = 120 + at * scale, max(document["num_tokens"] * scale - 0.6, 0.3)
            place_text = f'x="{left:.1f}" y="{top}" width="{wide:.1f}" height="20" fill="{colours[document["source"]]}"'
            parts.append(f"<rect {place_text}><title>{escape(title)}</title></rect>")
            at += document["num_tokens"]
    parts.append("</svg></div>")
    legend = " ".join(f'<i style="background:{colour}"></i> {escape(name)}' for name, colour in colours.items())
    return "".join(parts) + f'<p class="note">{legend}</p>'


def _fill(values: dict[str, Any]) -> str:
    fill, train = values["pack_fill"], values["splits"]["train"]
    return _figures(
        [
            ("packs", _number(train["num_packs"])),
            ("fewest possible: tokens by slots", _number(fill["lower_bound_packs"])),
            (
                f"without the limit of {values['max_documents_per_pack']} documents",
                _number(fill["packs_without_document_limit"]),
            ),
            ("packs at that limit", _number(fill["packs_at_document_limit"])),
            ("most documents in a pack", _number(train["max_documents_in_pack"])),
        ],
    )
