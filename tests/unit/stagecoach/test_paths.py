"""Paths: every name that becomes part of a key is checked, and the layout is pinned."""

import pytest

from stagecoach import paths
from stagecoach.errors import ConfigError


@pytest.mark.parametrize("name", ["a", "mistral-7b-v0.1", "x_y", "0", "a" * 63])
def test_a_plain_name_is_kept(name: str) -> None:
    assert paths.validate_name(name, "name") == name


@pytest.mark.parametrize(
    "name", ["", "..", "a..b", "../etc", "A", "a/b", "a b", "-a", "a-", ".a", "a\n", "a\x00b", "ä", "a" * 64]
)
def test_a_name_that_could_leave_its_place_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name: expected 1 to 63 characters"):
        paths.validate_name(name, "name")


@pytest.mark.parametrize("run_id", ["20261125T013000Z-tiny-cpu-ab12", "20261125T013000Z-a"])
def test_a_run_id_begins_with_its_time(run_id: str) -> None:
    assert paths.validate_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id",
    ["tiny", "20261125T013000Z", "20261125T013000Z-", "20261125T013000Z-a/../b", "20261125T013000Z-A"],
)
def test_a_run_id_without_a_time_or_with_a_path_is_refused(run_id: str) -> None:
    with pytest.raises(ConfigError, match="run id"):
        paths.validate_run_id(run_id)


def test_the_layout_of_the_store() -> None:
    packed = paths.output_prefix("packed", "demo", "00ff")
    assert packed == "packed/demo-00ff/"
    assert paths.manifest_key(packed) == "packed/demo-00ff/manifest.json"
    assert paths.plan_key("20261125T013000Z-a") == "runs/20261125T013000Z-a/plan.json"
    assert (
        paths.numbered(paths.task_record_prefix("20261125T013000Z-a", "pack"), 3)
        == "runs/20261125T013000Z-a/pack/0003.json"
    )
    assert paths.checkpoint_prefix("trained/m-00ff/", 152, 1) == "trained/m-00ff/iter_0000152/attempt-0001/"
    assert paths.metrics_key("trained/m-00ff/", 2, 7) == "trained/m-00ff/metrics/attempt-0002-000007.jsonl"
    assert paths.tracker_key("trained/m-00ff/") == "trained/m-00ff/latest_checkpointed_iteration.txt"


def test_two_tries_never_share_a_folder() -> None:
    folders = {paths.new_try_prefix("packed/demo-00ff/") for _ in range(100)}
    assert len(folders) == 100
    assert all(folder.startswith("packed/demo-00ff/try-") and folder.endswith("/") for folder in folders)
