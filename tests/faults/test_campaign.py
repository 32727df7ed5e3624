"""The fault campaign's own promises: how cases are spread, that a seed is a case, and a few cases of each cheap kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.campaign.cases import KINDS, PAIRS, SCOPES, WHOLE, Case, Result
from tests.faults.campaign.proxy import Plot, StreamOutage
from tests.faults.campaign.report import BEGIN, END, append_result, read_results, summary, write_report
from tests.faulty_s3 import Request

ROOT = Path(__file__).parents[2]
WHOLE_CAMPAIGN = 5 * len(PAIRS)


@pytest.mark.parametrize("first", [0, 1, 7_654_321])
def test_a_whole_campaign_has_enough_of_everything_wherever_it_begins(first: int) -> None:
    cases = [Case(seed) for seed in range(first, first + WHOLE_CAMPAIGN)]
    kinds, scopes = Counter(case.kind for case in cases), Counter(case.scope for case in cases)
    assert len(cases) >= 500
    assert min(kinds[kind] for kind in KINDS) >= 30
    assert min(scopes[scope] for scope in SCOPES) >= 50
    assert scopes[WHOLE] >= 60


def test_a_seed_is_a_case() -> None:
    def draw(seed: int) -> list[float]:
        rng = Case(seed).random
        return [rng.random() for _ in range(5)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(5 + len(PAIRS))
    assert (Case(5).scope, Case(5).kind) == (Case(5 + len(PAIRS)).scope, Case(5 + len(PAIRS)).kind)


def test_a_plot_fails_what_it_says() -> None:
    plot = Plot(first=3, burst=2, again_after=4, bursts=2)
    assert [number for number in range(1, 30) if plot.fails(Request("GET", "/b/a", number, ""))] == [3, 4, 9, 10]


@pytest.mark.parametrize("alone", [True, False])
def test_an_outage_in_a_stream_uses_up_the_tries_of_one_request(alone: bool) -> None:
    parts = [f"/b/a?partNumber={number}&uploadId=x" for number in (1, 2, 1, 2, 3, 2, 1, 2, 3)]
    begin, end = ("POST", "/b/a?uploads"), ("POST", "/b/a?uploadId=x")
    paths = [
        ("POST", "/b/other?uploads"),
        begin,
        begin,
        begin,
        begin,
        *(("PUT", path) for path in parts),
        end,
        end,
        end,
        end,
    ]
    outage = StreamOutage("a", part=2, tries=3, alone=alone)
    failed = [number for number, (method, path) in enumerate(paths) if outage.fails(Request(method, path, number, ""))]
    assert failed == [1, 2, 3, *((6, 8, 10) if alone else range(6, 11)), 14, 15, 16]


def test_an_outage_lies_in_the_middle_of_the_parts_of_its_object() -> None:
    for seed in range(100):
        outage = StreamOutage.of(Case(seed).random, {"x/small": 1, "x/two": 2, "x/large": 5}, tries=3)
        assert outage.name == "large"
        assert 2 <= outage.part <= 4


def test_the_table_replaces_itself_only(tmp_path: Path) -> None:
    file = tmp_path / "r.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    one = Result(
        seed=1, scope="pack", kind="bit flip", hit=True, first_exit_code=1, attempts=2, seconds=30.0, problem=""
    )
    results = [one, replace(one, seed=2, problem="bad")]
    write_report(file, results)
    text = file.read_text(encoding="utf-8")
    assert text.startswith(
        f"before\n{BEGIN}\n2 cases, seeds 1 to 2, 1.0 minutes of cases one after the other, 1 ended badly"
    )
    assert "seeds 1 to 2, 3.5 minutes in all, 1.0 minutes of" in summary(results, 3.5)
    assert text.endswith(f"{END}\nafter\n")
    assert "2 / **1 bad**" in summary(results)


def test_a_campaign_that_was_cut_goes_on_with_what_had_not_ended_well(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert read_results(file) == []
    good = Result(seed=1, scope="pack", kind="bit flip", hit=True, first_exit_code=1, attempts=2, seconds=1, problem="")
    for result in (good, replace(good, seed=2, problem="bad"), replace(good, seed=3)):
        append_result(file, result)
    file.write_text(file.read_text()[:-20], encoding="utf-8")  # killed while it wrote the last line
    assert read_results(file) == [good]


@pytest.mark.slow
def test_ten_cases_end_well(tmp_path: Path) -> None:
    """The command itself; a whole campaign is ``make test-faults``."""
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.faults.campaign", "--seed", "1000", "--cases", "10"]
    done = subprocess.run([*command, "--results", str(results)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [json.loads(line)["problem"] for line in results.read_text().splitlines()] == [""] * 10
