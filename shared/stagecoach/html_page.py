"""One static HTML page for people: inline CSS and SVG, no script, no outside file; everything from data is escaped here.

Strings are ready HTML only where a function returns ``Html``; every other text is escaped when it is put in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9d9e0; --back: #fcfcfd; --card: #ffffff;
  --one: #3e63dd; --two: #d9540b; --good: #218358; --bad: #ce2c31; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --back: #111113; --card: #18191b;
    --one: #849dff; --two: #ff9a5c; --good: #3dd68c; --bad: #ff9592; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.note, figcaption { color: var(--soft); margin: .2rem 0 .8rem; }
p.banner { border-left: 4px solid var(--one); background: var(--card); padding: .6rem .8rem; margin: 1rem 0; }
p.good { border-color: var(--good); } p.bad { border-color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.text th, table.text td { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
@media (min-width: 40rem) { table.text td:not([data-label]) { min-width: 19rem; } }
@media (max-width: 40rem) {
  table.text thead { display: none; }
  table.text tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  table.text td { display: block; border: 0; padding: .1rem 0; }
  table.text td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .85rem; }
  table.text td:empty { display: none; }
}
td.bar { width: 40%; min-width: 8rem; }
.bar span { display: block; height: .8rem; margin-top: .35rem; border-radius: 2px; background: var(--one); min-width: 1px; }
.bar span.old { background: var(--line); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
dl div { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; background: var(--card); }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
dd small { color: var(--soft); font-size: .8rem; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .7rem .8rem .4rem; background: var(--card); }
figcaption span { white-space: nowrap; }
figcaption { margin: 0 0 .4rem; } figcaption b { color: var(--ink); font-weight: 600; margin-right: .6rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .one { stroke: var(--one); } svg .two { stroke: var(--two); } svg path.faint { opacity: .35; stroke-width: 1; }
svg circle.one { fill: var(--one); } svg circle.two { fill: var(--two); }
i.one, i.two { display: inline-block; width: .8rem; height: .2rem; vertical-align: middle; margin: 0 .3rem 0 .6rem; }
i.one { background: var(--one); } i.two { background: var(--two); }
ul.tree { list-style: none; padding-left: 0; font: 13px/1.6 ui-monospace, monospace; }
ul.tree ul { list-style: none; padding-left: 1.1rem; border-left: 1px solid var(--line); }
pre { font: 13px/1.5 ui-monospace, monospace; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .7rem .8rem; }
summary { cursor: pointer; color: var(--soft); }
"""


class Html(str):
    """A text that is HTML already and is put in as it is."""

    __slots__ = ()


def html(text: object) -> Html:
    """Return ``text`` as HTML: escaped, unless it is HTML already."""
    return text if isinstance(text, Html) else Html(escape(str(text), quote=True))


def page(title: str, parts: Iterable[Html]) -> bytes:
    """Return a whole page as UTF-8; characters that no page may hold are replaced."""
    text = "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html(title)}</title>',
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>',
            *parts,
            "</body></html>",
        ]
    )
    return "".join(" " if ord(char) < 32 and char not in "\n\t" else char for char in text).encode("utf-8", "replace")


def heading(text: object, level: int = 2) -> Html:
    """Return a heading."""
    return Html(f"<h{level}>{html(text)}</h{level}>")


def note(text: object) -> Html:
    """Return a paragraph in soft ink."""
    return Html(f'<p class="note">{html(text)}</p>')


def banner(text: object, kind: str = "") -> Html:
    """Return a paragraph that stands out; ``kind`` is empty, ``good`` or ``bad``."""
    return Html(f'<p class="banner {html(kind)}">{html(text)}</p>')


def figures(pairs: Iterable[tuple[object, object]]) -> Html:
    """Return the numbers that matter most, each with its name, as a row of cards."""
    return Html(
        "<dl>" + "".join(f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in pairs) + "</dl>"
    )


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, text: bool = False) -> Html:
    """Return a table that scrolls by itself on a narrow screen; with ``text``, for cells with sentences in them, its rows
    become blocks there.
    """
    header = "".join(f"<th>{html(name)}</th>" for name in head)
    labels = [f' data-label="{html(name)}"' if text and name else "" for name in head]
    body = "".join("<tr>" + "".join(map(_cell, row, labels)) + "</tr>" for row in rows)
    kind = ' class="text"' if text else ""
    return Html(f'<div class="scroll"><table{kind}><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>')


class Bar(Html):
    """A table cell that shows a share of a whole as a bar; make it with ``bar``."""

    __slots__ = ()


def bar(share: float, *, old: bool = False) -> Bar:
    """Return a bar that fills ``share`` (0 to 1) of its cell."""
    kind = ' class="old"' if old else ""
    return Bar(f'<span{kind} style="width:{100 * min(1.0, max(0.0, share)):.2f}%"></span>')


def details(summary: object, content: Html) -> Html:
    """Return something that unfolds on a click."""
    return Html(f"<details><summary>{html(summary)}</summary>{content}</details>")


def number(value: float) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _cell(cell: object, label: str) -> str:
    if isinstance(cell, Bar):
        return f'<td class="bar">{cell}</td>'
    return f"<td{label}>{html('' if cell is None else cell)}</td>"
