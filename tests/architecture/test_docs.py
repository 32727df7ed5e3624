"""The documents say what the code says."""

from pathlib import Path

from stagecoach.stages import diagram

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_generated_from_the_table_of_stages() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{diagram()}\n```" in text
