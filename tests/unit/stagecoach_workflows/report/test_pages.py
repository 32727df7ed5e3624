"""The report of a run and of two: their numbers, that they stand alone, and that nothing from data becomes markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stagecoach.errors import MissingInputError
from stagecoach.releases import Release, append_release
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.bucket.runs import compare_runs
from stagecoach_workflows.plan import plan_run
from stagecoach_workflows.report.charts import Series, line_chart, thin, ticks
from stagecoach_workflows.report.compare_page import compare_page
from stagecoach_workflows.report.facts import gather
from stagecoach_workflows.report.page import run_page
from stagecoach_workflows.report.prices import price_of
from stagecoach_workflows.report.write import write_report
from tests.unit.stagecoach_workflows.recipes import small_recipe
from tests.unit.stagecoach_workflows.report.runs import EVIL, write_run

FIRST, SECOND = "20261125T013000Z-first", "20261125T023000Z-second"


class Page(HTMLParser):
    """Collects the tags and texts of a page, and checks that every element that is opened is closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(data.decode("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def has(self, text: str) -> bool:
        return any(text in one for one in self.texts)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore("pages")
    write_run(store, tmp_path, FIRST, text=EVIL)
    write_run(store, tmp_path, SECOND, text="calm", lr=2e-3)
    return store


def test_the_facts_are_those_of_both_attempts(store: MemoryStore) -> None:
    facts = gather(store, FIRST)
    assert [(use.attempt, use.first_step, use.last_step, use.seconds) for use in facts.attempts] == [
        (1, 0, 100, 3600.0),  # twenty of its steps were lost, but paid for
        (2, 80, 400, 3600.0),
    ]
    assert [step for step, _ in facts.values("loss")] == list(range(1, 401))
    assert facts.gpus == 8
    assert facts.gpu_hours == 16.0
    assert facts.usd_per_gpu_hour == 3.5
    assert gather(store, FIRST, 1.25).usd_per_gpu_hour == 1.25
    assert [(pair.before, pair.after, pair.right) for pair in facts.answers] == [
        (f"{EVIL} 1", f"{EVIL} 2", None),
        (EVIL, EVIL, True),
    ]


def test_the_page_stands_alone_and_says_what_counts(store: MemoryStore) -> None:
    page = Page(run_page(gather(store, SECOND)))
    assert {"svg", "path", "table", "style", "details"} <= page.tags
    assert not {"script", "link", "img", "iframe", "a", "form"} & page.tags
    for text in ("MFU", "50.0%", "61.2 GiB", "GPU hours", "USD", "1 of 1 tasks answered right"):
        assert page.has(text), text


@pytest.mark.parametrize("which", ["run", "compare"])
def test_what_data_says_never_becomes_markup(store: MemoryStore, which: str) -> None:
    facts = gather(store, FIRST)
    if which == "run":
        data = run_page(facts)
    else:
        data = compare_page(facts, gather(store, SECOND), compare_runs(store, FIRST, SECOND))
    page = Page(data)
    assert page.has("<script>alert('x')</script>")  # as text
    assert not {"script", "img"} & page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert b"\x00" not in data
    assert b"\x1b" not in data


def test_two_runs_show_what_differs(store: MemoryStore) -> None:
    page = Page(compare_page(gather(store, FIRST), gather(store, SECOND), compare_runs(store, FIRST, SECOND)))
    assert page.has("recipe.train.lr")
    assert not page.has("recipe.train.gpus")
    assert "svg" in page.tags


def test_a_run_that_has_only_a_plan_has_a_page(tmp_path: Path) -> None:
    store = MemoryStore("planned")
    plan_run(small_recipe(), store, Settings(), FIRST)
    assert Page(run_page(gather(store, FIRST))).has("planned")
    assert write_report(store, FIRST, tmp_path / "new" / "report.html")


def test_no_plan_no_page_and_no_failure(tmp_path: Path) -> None:
    store = MemoryStore("empty")
    with pytest.raises(MissingInputError):
        gather(store, FIRST)
    assert not write_report(store, FIRST, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_release_stands_at_the_top() -> None:
    store = MemoryStore("refused")
    plan = plan_run(small_recipe(export={"release": "chat"}), store, Settings(), FIRST)
    refused = Release(outcome="refused", candidate=plan.task("export").output, export=None, reasons=("<b>worse</b>",))
    append_release(store, "chat", {}, refused)
    assert Page(run_page(gather(store, FIRST))).has("not released as chat: <b>worse</b>")


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.3, 7.8, 4, [0, 2, 4, 6, 8]),
        (0, 760, 5, [0, 200, 400, 600, 800]),
        (5.0, 5.0, 4, [5]),
        (0.0, 0.0, 4, [0.0]),
        (-1.0, 1.0, 4, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == expected


def test_a_curve_leaves_out_what_is_no_number() -> None:
    points = [(1.0, float("nan")), (2.0, float("inf"))]
    assert line_chart("t", "step", [Series(label="x", points=points)], str) == ""
    assert "circle" in line_chart("t", "step", [Series(label="x", points=[*points, (3.0, 1.0)])], str)


def test_many_points_become_means() -> None:
    assert thin([(float(x), float(x)) for x in range(1, 7)], 3) == [(2.0, 1.5), (4.0, 3.5), (6.0, 5.5)]


def test_prices_go_by_the_name_of_the_gpu() -> None:
    assert price_of("NVIDIA A100-SXM4-80GB") == 2.5
    assert price_of("NVIDIA A100-SXM4-40GB") == 2.0
    assert price_of("Abacus") is price_of(None) is None


def test_what_pack_reported_must_be_json(store: MemoryStore) -> None:
    assert json.loads(json.dumps(gather(store, SECOND).data))["sources"][0]["rows_read"] == 7
