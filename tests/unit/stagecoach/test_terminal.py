"""What comes from data is shown by a terminal, and never obeyed or taken for markup."""

from __future__ import annotations

import pytest
from rich.table import Table

from stagecoach.terminal import console, visible


def test_control_characters_are_spelled_out() -> None:
    assert visible("a\x1b[2J\r\x07\x9b31m\x7fb\tc\nä\u202e") == "a\\x1b[2J\\x0d\\x07\\x9b31m\\x7fb\tc\nä\u202e"


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
