"""A path that a command cannot write is one sentence and 78, not a bug."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.cli.main import app
from stagecoach_workflows.output_file import write_output_file

RUN = "20261125T000000Z-a"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("report", RUN, "-o"), "--output"),
        (("compare", RUN, RUN, "--page"), "--page"),
        (("render", "micro", "-o"), "--output"),
    ],
)
@pytest.mark.parametrize("file", ["no/dir/page", "."])
def test_it_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], option: str, file: str
) -> None:
    store = () if command[0] == "render" else ("--store", str(tmp_path))
    assert app([*command, str(tmp_path / file), *store]) == 78
    assert capsys.readouterr().err.startswith(f"{option}: ")
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_system_refuses_is_said_too() -> None:
    with pytest.raises(ConfigError, match=r"--page: cannot write /proc/x\.html: "):
        write_output_file(Path("/proc/x.html"), b"", "--page")


def test_a_folder_that_cannot_be_made_for_all_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert app(["render", "--all", "-o", str(tmp_path / "file")]) == 78
    assert capsys.readouterr().err.startswith("--output: expected a folder")


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_is_an_amount(tmp_path: Path, capsys: pytest.CaptureFixture[str], price: str) -> None:
    assert app(["report", RUN, "--price", price, "--store", str(tmp_path)]) == 78
    assert capsys.readouterr().err.startswith("--price: expected dollars")
