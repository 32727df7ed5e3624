"""Run ids begin with UTC time and are legal keys and labels."""

from __future__ import annotations

import pytest

from stagecoach.paths import validate_run_id
from stagecoach_workflows.run_ids import new_run_id, run_id_of_workflow, slug

NOVEMBER_25_0130 = 1795570200.0  # 2026-11-25 01:30:00 UTC


def test_a_new_id_has_time_name_and_four_random_digits() -> None:
    run_id = new_run_id("tiny-cpu", NOVEMBER_25_0130)
    assert run_id.startswith("20261125T013000Z-tiny-cpu-")
    assert len(run_id) == len("20261125T013000Z-tiny-cpu-ab12")
    assert run_id != new_run_id("tiny-cpu", NOVEMBER_25_0130)


def test_a_workflow_gives_the_same_id_each_time() -> None:
    assert run_id_of_workflow("stagecoach-micro-x7k2p", NOVEMBER_25_0130) == "20261125T013000Z-stagecoach-micro-x7k2p"


def test_a_scheduled_workflow_counts_from_when_it_was_due() -> None:
    """A CronWorkflow names its workflows after the unix time they were due; they may start much later."""
    late = NOVEMBER_25_0130 + 3600
    assert run_id_of_workflow("nightly-1795570200", late) == "20261125T013000Z-nightly-1795570200"


@pytest.mark.parametrize("name", ["a" * 63, "x.y_z", "a" * 59 + "-b", "-" * 70])
def test_any_name_gives_a_legal_id(name: str) -> None:
    validate_run_id(new_run_id(name, NOVEMBER_25_0130))
    validate_run_id(run_id_of_workflow(name, NOVEMBER_25_0130))


def test_the_random_end_of_a_long_workflow_name_survives() -> None:
    assert run_id_of_workflow("a" * 57 + "-x7k2p", NOVEMBER_25_0130).endswith("-x7k2p")


def test_a_slug_has_letters_digits_and_single_dashes() -> None:
    assert slug("My Recipe_v1.5!", 10) == "my-recipe"
