"""The documents say what the code says."""

from pathlib import Path

import pytest

from stagecoach.stages import diagram

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_generated_from_the_table_of_stages() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{diagram()}\n```" in text


@pytest.mark.parametrize("decision", sorted((ROOT / "docs/decisions").glob("0*.md")), ids=lambda path: path.name)
def test_every_decision_says_what_would_change_our_mind(decision: Path) -> None:
    assert "\nWe would change this" in decision.read_text(encoding="utf-8")
