"""A process is gone only if it certainly ran here and is not there any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stagecoach_train.liveness import is_gone, own_name

PRINT_NAME = "from stagecoach_train.liveness import own_name; print(own_name(), flush=True); input()"


def test_this_process_is_there() -> None:
    assert not is_gone(own_name())


def test_a_child_is_there_until_it_ends() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PRINT_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    assert not is_gone(name)
    child.communicate("\n")
    assert is_gone(name)


@pytest.mark.parametrize("part", [0, 1])
def test_of_another_machine_or_container_nothing_is_known(part: int) -> None:
    parts = own_name().split("/")
    parts[2] = "999999999"
    assert is_gone("/".join(parts))
    parts[part] = "other"
    assert not is_gone("/".join(parts))


def test_a_number_that_was_given_again_is_another_process() -> None:
    boot, namespace, number, _ = own_name().split("/")
    assert is_gone(f"{boot}/{namespace}/{number}/1")


def test_an_unknown_name_is_not_gone() -> None:
    assert not is_gone("")
