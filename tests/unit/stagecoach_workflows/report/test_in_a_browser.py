"""The pages in a real browser, at the width of a desk and of a phone, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.bucket.runs import compare_runs
from stagecoach_workflows.report.compare_page import compare_page
from stagecoach_workflows.report.facts import gather
from stagecoach_workflows.report.page import run_page
from tests.browser import Browser, find_browser, running_browser
from tests.unit.stagecoach_pack.packing_runs import json_lines, pack_run
from tests.unit.stagecoach_workflows.report.runs import EVIL, write_run

pytestmark = pytest.mark.xdist_group("browser")
LONG = "A word andthenonethatislongerthananyscreenofanyphoneiswideandgoesonandonandonandon. " * 12
ANSWER = {"role": "assistant", "content": "An answer."}
FIRST, SECOND = "20261125T013000Z-first", "20261125T023000Z-second"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no browser on this machine")
    with running_browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, store = tmp_path_factory.mktemp("pages"), MemoryStore("browser")
    write_run(store, folder, FIRST, text=LONG)
    write_run(store, folder, SECOND, text=EVIL, lr=2e-3)
    first, second = gather(store, FIRST), gather(store, SECOND)
    made = {"run": run_page(first), "compare": compare_page(first, second, compare_runs(store, FIRST, SECOND))}
    talks = [{"messages": [{"role": "user", "content": text}, ANSWER]} for text in (EVIL, LONG, *map(str, range(400)))]
    packed = pack_run(folder / "pack", {"a": {"x.jsonl": json_lines(*talks)}, "b": {"y.jsonl": json_lines(*talks[:9])}})
    made["pack"] = packed.read_bytes("report.html")
    for name, data in made.items():
        (folder / f"{name}.html").write_bytes(data)
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "compare", "pack"])
def test_everything_can_be_read(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    """No text lies over another, is too small or too pale, and nothing is wider than the window."""
    look = browser.look(pages[name], width=width, dark=dark)
    assert look.problems == []
    assert look.num_texts > 80
    assert look.num_colours() > 50


def test_the_judge_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    page = """<body style="background: rgb(255, 255, 255)"><p style="color: rgb(200, 200, 200)">pale</p>
    <p style="font-size: 4px">small</p><p style="width: 3000px">wide</p>
    <p style="position: absolute; top: 300px">one</p><p style="position: absolute; top: 302px">two</p></body>"""
    (tmp_path / "wrong.html").write_text(page, encoding="utf-8")
    problems = " ".join(browser.look(tmp_path / "wrong.html", width=390, dark=False).problems)
    for words in ("contrast 1.7 is too low: pale", "too small to read: small", "wider than", "overlap: one | two"):
        assert words in problems
