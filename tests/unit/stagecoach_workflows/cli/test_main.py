"""The command line as a whole: quick, every command documented, errors as one sentence with the right exit code."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest
import typer

from stagecoach_workflows.cli.main import app, commands

COMMANDS = ["run", "check", "plan", "preview", "data-stats", "render", "submit", "status", "cancel", "logs", "doctor"]


def test_the_commands_are_these() -> None:
    names = [command.name or command.callback.__name__ for command in commands.registered_commands if command.callback]
    assert names[: len(COMMANDS)] == COMMANDS


def test_every_command_and_option_says_what_it_is_for() -> None:
    group: Any = typer.main.get_command(commands)
    silent = [
        f"{name} {parameter.name}"
        for name, command in group.commands.items()
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []
    assert all(command.help for command in group.commands.values())


def test_help_comes_at_once() -> None:
    """0.3 s on an idle machine; processor time is asked for, as other tests run beside, and the best of three."""

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "stagecoach_workflows", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.6


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run"], 78, "Missing argument"),
        (["run", "micro", "--nonsense"], 78, "No such option"),
        (["nonsense"], 78, "No such command"),
        (["check", "nothing-here"], 78, "expected a readable YAML file or one of"),
        (["check", "micro", "--set", "train.seed"], 78, "expected PATH=VALUE"),
        (["check", "micro", "--store", "ftp://x"], 78, "store: expected a directory"),
        (["run", "micro", "--run", "../../etc"], 78, "run id: expected the form"),
        (["render"], 78, "expected a RECIPE, or --all"),
        (["submit"], 78, "expected a RECIPE, or --from"),
    ],
)
def test_usage_errors_are_one_sentence_and_78(
    arguments: list[str], code: int, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app(arguments) == code
    error = capfd.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_debug_adds_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["--debug", "check", "nothing-here"]) == 78
    assert "Traceback" in capfd.readouterr().err


def test_a_bug_is_70_and_leaves_its_traceback(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecoach_workflows.recipes_shipped.load_recipe", lambda *arguments: 1 / 0)
    assert app(["check", "micro"]) == 70
    assert "a bug in Stagecoach: ZeroDivisionError" in capfd.readouterr().err
