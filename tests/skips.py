"""Turns a skip into a failure unless its reason is on a short list, so that green means the tests ran.

CI passes ``--strict-skips``. Without it a skip is a skip.
"""

from __future__ import annotations

import pytest

ALLOWED_REASONS = ("GPU", "../shared", "cluster", "Docker", "browser", "wandb is not installed")
"""A skip is expected where its reason names one of these: what a plain machine may lack."""


def is_allowed(reason: str) -> bool:
    """Whether a test may be skipped for ``reason``."""
    return any(word in reason for word in ALLOWED_REASONS)


class StrictSkips:
    """Collects skips whose reason is not on the list and fails the session for them."""

    def __init__(self) -> None:
        self.offenders: list[str] = []

    def _note(self, nodeid: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not is_allowed(reason):
            self.offenders.append(f"{nodeid}: {reason.removeprefix('Skipped: ')}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for each phase of each test, also for those that ran in a worker process."""
        self._note(report.nodeid, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called for each collected file; a whole file may skip itself."""
        self._note(report.nodeid, report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Makes the run fail."""
        if self.offenders and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Says which tests were skipped without leave."""
        if self.offenders:
            terminalreporter.section("skipped without an allowed reason", red=True)
            for offender in self.offenders:
                terminalreporter.line(offender)
            terminalreporter.line(f"allowed reasons contain one of: {', '.join(ALLOWED_REASONS)}")
