"""What is seen while a run goes."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from stagecoach_workflows.display import Display
from stagecoach_workflows.engine import State, TaskRun
from stagecoach_workflows.interpret import read_workflow
from tests.unit.stagecoach_workflows.documents import container, document, task


def runs(tmp_path: Path) -> dict[str, TaskRun]:
    graph = read_workflow(document([task("train")], [container("train", "")]))
    run = TaskRun(spec=graph.tasks[0], folder=tmp_path, log=tmp_path / "log")
    return {"train": run}


def progress(tmp_path: Path, text: str, note: str) -> None:
    (tmp_path / "progress").write_text(text)
    (tmp_path / "progress.note").write_text(note)


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path) -> None:
    output, found = io.StringIO(), runs(tmp_path)
    with Display(Console(file=output, width=100)) as display:
        display(found)
        found["train"].state = State.RUNNING
        progress(tmp_path, "500/1000", "loss 0.500, 17,000 tokens/s")
        display(found)
        display(found)
        found["train"].state, found["train"].exit_code = State.FAILED, 79
        display(found)
    assert output.getvalue().splitlines() == [
        "train: running 50% loss 0.500, 17,000 tokens/s",
        "train: failed in 0.0 s (exit code 79)",
    ]


def test_a_terminal_shows_bar_loss_and_tokens_per_second(tmp_path: Path) -> None:
    output, found = io.StringIO(), runs(tmp_path)
    found["train"].state = State.RUNNING
    progress(tmp_path, "500/1000", "loss 0.500, 17,000 tokens/s")
    with Display(Console(file=output, width=100, force_terminal=True, color_system=None)) as display:
        display(found)
    assert "loss 0.500, 17,000 tokens/s" in output.getvalue()
    assert "━" in output.getvalue()


def test_a_failed_task_shows_its_last_sentence_on_a_terminal(tmp_path: Path) -> None:
    output, found = io.StringIO(), runs(tmp_path)
    found["train"].state, found["train"].exit_code = State.FAILED, 79
    (tmp_path / "log").write_text("2026-11-25 01:30:00,000 E stagecoach: no weights\n")
    with Display(Console(file=output, width=100, force_terminal=True, color_system=None)) as display:
        display(found)
    assert "exit code 79: no weights" in output.getvalue()
