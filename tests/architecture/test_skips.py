"""A skip that nobody expected fails CI, so that "all green" cannot mean "nothing ran"."""

from __future__ import annotations

import pytest

from tests.skips import is_allowed

CONFTEST = """
from tests.skips import StrictSkips

def pytest_configure(config):
    config.pluginmanager.register(StrictSkips())
"""


@pytest.mark.parametrize(
    ("reason", "allowed"),
    [
        ("needs a GPU", True),
        ("../shared/data/chat is not here", True),
        ("no cluster: set KUBECONFIG", True),
        ("Docker is not running", True),
        ("flaky today", False),
        ("", False),
    ],
)
def test_only_listed_reasons_are_allowed(reason: str, allowed: bool) -> None:
    assert is_allowed(reason) is allowed


@pytest.mark.parametrize(("reason", "exit_code"), [("needs a GPU", 0), ("flaky today", 1)])
def test_an_unlisted_skip_fails_the_run(pytester: pytest.Pytester, reason: str, exit_code: int) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        f"""
        import pytest

        def test_runs():
            pass

        @pytest.mark.skip(reason={reason!r})
        def test_skips():
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == exit_code
    result.assert_outcomes(passed=1, skipped=1)


def test_a_file_that_skips_itself_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("import pytest\npytest.skip('later', allow_module_level=True)\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*skipped without an allowed reason*", "*later*"])
