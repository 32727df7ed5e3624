"""How plans, results and answers look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagecoach.plan_file import Plan
from stagecoach.recipe.recipe import Recipe
from stagecoach.storage.base import ObjectStore
from stagecoach.terminal import visible
from stagecoach_workflows.answers import Answer
from stagecoach_workflows.bucket.releases import offer_outcome
from stagecoach_workflows.summary import human_bytes, losses, results

_SHOWN_ANSWERS = 3


def show_plan(console: Console, plan: Plan) -> None:
    """Print each task's decision and reason."""
    table = Table("task", "decision", "reason", "output", box=None, pad_edge=False)
    for task in plan.tasks.values():
        style = "bold" if task.decision == "run" else "dim"
        table.add_row(task.task, Text(task.decision, style=style), task.reason, Text(task.output, overflow="fold"))
    console.print(table)


def show_results(console: Console, store: ObjectStore, plan: Plan, recipe: Recipe) -> None:
    """Print what each task made, its size and time, and the losses."""
    found = results(store, plan)
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "made"):
        table.add_column(heading, no_wrap=True)
    for heading in ("size", "time"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for result in found:
        time_text = f"{result.seconds:.1f} s" if result.ran else f"({result.seconds:.1f} s)"
        table.add_row(
            result.task, result.made, human_bytes(result.size_bytes), time_text, "" if result.ran else "was there"
        )
    console.print()
    console.print(table)
    named = [f"{label} {value:.4f}" for label, value in losses(found).items()]
    if named:
        console.print(f"loss: {', '.join(named)}")
    console.print(f"exported model: {store.url.rstrip('/')}/{plan.tasks['export'].output}", soft_wrap=True)
    outcome = offer_outcome(store, plan)
    if outcome is not None:
        console.print(Text(outcome.sentence(), style="yellow" if outcome.release.outcome == "refused" else "green"))


def show_answers(console: Console, answers: Sequence[Answer]) -> None:
    """Print three answers of the exported model, and how many of all are good."""
    console.print()
    for answer in answers[:_SHOWN_ANSWERS]:
        console.print(Text(visible(_last_message(answer.prompt)), style="cyan"))
        console.print(Text(f"  {visible(answer.answer.strip())}"))
        ending = "stopped by itself" if answer.stopped else "did not stop"
        console.print(Text(f"  {answer.share:.0%} of the trained answer's tokens, {ending}", style="dim"))
    good = sum(answer.good for answer in answers)
    console.print(
        f"{good} of {len(answers)} training prompts answered with at least 80 % of the reference's tokens and a stop",
    )


def _last_message(prompt: str) -> str:
    """Return the end of a rendered prompt for people: its last message, without control tokens."""
    messages = [part.strip() for part in prompt.replace("<|im_end|>", "<|im_start|>").split("<|im_start|>")]
    shown = [message for message in messages if message and message not in ("assistant", "<s>")]
    return shown[-1].replace("\n", ": ", 1) if shown else prompt[-200:]
