"""What every test may use: the strict treatment of skips, one real S3 server and one real run for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.skips import StrictSkips

if TYPE_CHECKING:
    from tests.micro_run import MicroWork
    from tests.seaweed import SeaweedServer

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the project's own options."""
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="fail on a skip whose reason is not on the list of tests/skips.py",
    )
    parser.addoption(
        "--regenerate",
        action="store_true",
        default=os.environ.get("STAGECOACH_REGENERATE") == "1",
        help="write the files of tests/golden anew instead of comparing; look at the diff before you commit it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the strict treatment of skips where it was asked for (in the process that reports)."""
    if config.getoption("--strict-skips") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(StrictSkips())


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> MicroWork:
    """The micro recipe, run once from end to end and undisturbed; who changes something takes a copy of it."""
    from tests.micro_run import MicroWork
    from tests.planted_secrets import SECRETS

    work = MicroWork(tmp_path_factory.mktemp("micro"))
    with pytest.MonkeyPatch.context() as environ:
        for name, value in SECRETS.items():
            environ.setenv(name, value)
        result = work.run()
    assert result.returncode == 0, result.stdout + result.stderr
    return work


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A SeaweedFS on free loopback ports, from the first test that asks for it to the last one."""
    from tests.seaweed import start_seaweed

    with start_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server
