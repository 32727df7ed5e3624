"""What comes from data is shown by a terminal, and never obeyed or taken for markup."""

from __future__ import annotations

import pytest
from rich.table import Table

from stagecoach.terminal import console, visible


def test_control_characters_are_spelled_out() -> None:
    assert visible("a\x1b[2J\r\x07\x9b31m\x7fb\tc\nä") == "a\\x1b[2J\\x0d\\x07\\x9b31m\\x7fb\tc\nä"


@pytest.mark.parametrize("character", "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_what_reorders_a_line_is_spelled_out(character: str) -> None:
    assert visible(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_letters_written_from_right_to_left_and_joiners_stay() -> None:
    assert visible("\u05e9\u05dc\u05d5\u05dd \u200d\u200c") == "\u05e9\u05dc\u05d5\u05dd \u200d\u200c"


def test_brackets_and_colons_are_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder named `d[` with a file `b]` was a closing tag that nothing had opened."""
    table = Table("file")
    table.add_row("d[/b].jsonl")
    shown = console()
    shown.print(table)
    shown.print("[bold] :smile: [/x]")
    said = capsys.readouterr().out
    assert "d[/b].jsonl" in said
    assert "[bold] :smile: [/x]" in said
