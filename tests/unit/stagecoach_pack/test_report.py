"""The report: its figures, and a page that stands alone and escapes what data says."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from tests.unit.stagecoach_pack.packing_runs import json_lines, pack_run
from tests.unit.stagecoach_pack.test_run import DEMO, rows


class _Balance(HTMLParser):
    """Checks that every element that is opened is closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(tmp_path: Path) -> None:
    packed = pack_run(
        tmp_path, {"demo": {"chat.jsonl": DEMO}, "more": {"x.jsonl": json_lines(*rows(30))}}, heldout_share=0.1
    )
    page = packed.read_bytes("report.html").decode()
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert {"svg", "table", "style"} <= parser.tags
    assert not {"script", "link", "img", "iframe"} & parser.tags
    assert "http" not in page


def test_figures_agree_with_the_packs(tmp_path: Path) -> None:
    packed = pack_run(
        tmp_path, {"demo": {"chat.jsonl": DEMO}, "more": {"x.jsonl": json_lines(*rows(30))}}, heldout_num=20
    )
    report = json.loads(packed.read_bytes("report.json"))
    train = report["splits"]["train"]
    assert (
        sum(row["documents"] for row in report["sources"]) == train["num_documents"] == packed.summary["num_documents"]
    )
    assert sum(row["tokens"] for row in report["sources"]) == train["num_tokens"]
    assert sum(row["trained_tokens"] for row in report["sources"]) == train["num_trained_tokens"]
    assert sum(row["documents"] for row in report["histogram"]) == train["num_documents"]
    assert sum(row["held_out"] for row in report["sources"]) == 20
    assert train["fill"] == train["num_tokens"] / (256 * train["num_packs"])
    assert report["pack_fill"]["lower_bound_packs"] <= train["num_packs"]
    assert len(report["sample_packs"]) == 10


def test_what_data_says_is_escaped(tmp_path: Path) -> None:
    bad = {"messages": [{"role": "<script>alert(1)</script>", "content": "x"}]}
    packed = pack_run(
        tmp_path, {"a": {"x.jsonl": json_lines(*rows(5), bad)}}, data={"on_bad_row": "drop", "max_bad_share": 0.5}
    )
    page = packed.read_bytes("report.html").decode()
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_a_document_limit_that_costs_packs_is_shown(tmp_path: Path) -> None:
    packed = pack_run(tmp_path, {"demo": {"chat.jsonl": DEMO}}, max_documents_per_pack=1)
    fill = json.loads(packed.read_bytes("report.json"))["pack_fill"]
    assert fill["packs_at_document_limit"] == packed.summary["num_packs"] == packed.summary["num_documents"]
    assert fill["packs_without_document_limit"] < packed.summary["num_packs"]
