"""Prints what comes from data, models and paths so that a terminal shows it and obeys none of it."""

from __future__ import annotations

from rich.console import Console

_REORDERS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""The directional marks, embeddings, overrides and isolates of Unicode (UAX 9): they move what stands beside them."""
_SHOWN_AS = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"},
    **{code: f"\\u{code:04x}" for code in _REORDERS},
}


def console(plain_width: int = 120) -> Console:
    """Return a console for standard output that takes brackets and colons in a text for what they are.

    Args:
        plain_width: Columns of a log or a pipe, which have no width of their own.
    """
    terminal = Console(markup=False, emoji=False, highlight=False)
    if terminal.is_terminal:
        return terminal
    return Console(markup=False, emoji=False, highlight=False, width=plain_width)


def visible(text: str) -> str:
    r"""Return text with its control characters, those of direction too, spelled out, but for tabs and line feeds.

    Examples:
        >>> print(visible("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return text.translate(_SHOWN_AS)
