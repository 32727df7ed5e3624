"""``stagecoach ls``, ``show``, ``compare``, ``lineage``, ``verify`` and ``gc``: what the bucket alone can tell."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagecoach_workflows.cli import options

if TYPE_CHECKING:
    from stagecoach.storage.base import ObjectStore

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or address of an output.", show_default=False)]


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command("ls")(list_runs)
    for command in (show, compare, lineage, verify, gc):
        commands.command()(command)


def list_runs(
    store: options.Store = "",
    limit: Annotated[int, typer.Option(min=1, help="Most runs to show.")] = 50,
    since: Annotated[str, typer.Option(help="Leave out runs before this time: 20261125 or 20261125T0130.")] = "",
    json_output: AsJson = False,
) -> None:
    """List the newest runs: recipe, state, last step, loss, age."""
    from stagecoach_workflows.bucket import runs

    rows = runs.list_runs(open_bucket(store), limit, since)
    if json_output:
        echo_json(runs.as_json(rows))
        return
    echo_table(
        ("run", "recipe", "state", "step", "loss", "age"),
        [(row.run_id, row.recipe, row.state, row.step, _number(row.loss), _age(row.age_seconds)) for row in rows],
    )
    for row in rows:
        if row.problem:
            typer.echo(f"{row.run_id}: {row.problem}")


def show(run_id: options.RunArgument, store: options.Store = "", json_output: AsJson = False) -> None:
    """Show one run: what was planned and why, what it made, how long it took."""
    from stagecoach_workflows.bucket import runs
    from stagecoach_workflows.bucket.releases import offer_outcome

    opened = open_bucket(store)
    plan, rows = runs.show_run(opened, run_id)
    outcome = offer_outcome(opened, plan)
    if json_output:
        released = None if outcome is None else {"name": outcome.name, **outcome.release.model_dump(mode="json")}
        state = runs.state_of(opened, plan)
        echo_json(
            {
                "plan": plan.model_dump(mode="json"),
                "state": state,
                "tasks": runs.as_json(rows),
                "release": released,
            }
        )
        return
    typer.echo(
        f"{plan.run_id}  recipe {plan.recipe.get('name')}  {runs.state_of(opened, plan)}  {runs.utc(plan.created_unix_seconds)}"
    )
    echo_table(
        ("task", "decision", "state", "attempts", "output", "bytes", "seconds", "why"),
        [
            (row.task, row.decision, row.state, row.attempts, row.output, row.size_bytes, row.seconds, row.reason)
            for row in rows
        ],
    )
    for row in rows:
        numbers = runs.numbers(row)
        if numbers:
            said = (
                f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.6g}"
                for name, value in numbers.items()
            )
            typer.echo(f"{row.task}: {', '.join(said)}")
    for row in rows:
        if row.message:
            typer.echo(f"{row.task}: {row.message}")
    if outcome is not None:
        typer.echo(outcome.sentence())


def compare(
    first: options.RunArgument,
    second: options.RunArgument,
    store: options.Store = "",
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML page with curves.", show_default=False)
    ] = None,
    json_output: AsJson = False,
) -> None:
    """Show side by side every recipe field, key and measured value in which two runs differ."""
    from stagecoach_workflows.bucket import runs
    from stagecoach_workflows.output_file import check_output_file, write_output_file

    if page is not None:
        check_output_file(page, "--page")
    opened = open_bucket(store)
    rows = runs.compare_runs(opened, first, second)
    if page is not None:
        from stagecoach_workflows.report.compare_page import compare_page
        from stagecoach_workflows.report.facts import gather

        html = compare_page(gather(opened, first), gather(opened, second), rows)
        write_output_file(page, html, "--page")
    if json_output:
        echo_json([{"name": name, "first": left, "second": right} for name, left, right in rows])
        return
    echo_table(("value", first, second), rows)


def lineage(output: Output, store: options.Store = "", json_output: AsJson = False) -> None:
    """Show what an output was made from, down to commits and file digests."""
    from stagecoach_workflows.bucket.lineage import lineage as trace
    from stagecoach_workflows.bucket.lineage import walk

    root = trace(open_bucket(store), output)
    if json_output:
        echo_json(asdict(root))
        return
    for depth, node in walk(root):
        role = f"{node.role}: " if node.role else ""
        typer.echo(f"{'  ' * depth}{role}{node.prefix} ({node.task}, run {node.provenance.get('run_id', '?')})")
        if node.source:
            commit = f" at commit {node.commit}" if node.commit else ""
            typer.echo(f"{'  ' * (depth + 1)}from {json.dumps(node.source, sort_keys=True)}{commit}")
        for file in node.files:
            digest = file.get("sha256") or file.get("git_blob_sha1") or file.get("etag")
            typer.echo(f"{'  ' * (depth + 1)}{file['path']}  {file['size_bytes']} bytes  {digest}")


def verify(
    outputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OUTPUT ...]",
            help="Folders or addresses of outputs; the whole store without it.",
            show_default=False,
        ),
    ] = None,
    store: options.Store = "",
    json_output: AsJson = False,
) -> int:
    """Read every byte of finished outputs and every record, and compare recorded digests; 79 if anything differs."""
    from stagecoach.errors import DataError
    from stagecoach_workflows.bucket.lineage import output_folder
    from stagecoach_workflows.bucket.verify import verify_folders, verify_store

    opened = open_bucket(store)
    folders = [output_folder(opened, name) for name in outputs or ()]
    found = verify_folders(opened, folders) if folders else verify_store(opened)
    if found.unfinished:
        unchecked = f"{len(found.unfinished)} without a manifest, not checked: {', '.join(found.unfinished)}"
        typer.echo(unchecked, err=json_output)
    if json_output:
        echo_json([asdict(problem) for problem in found.problems])
    else:
        for problem in found.problems:
            typer.echo(f"{problem.prefix}{problem.name}: {problem.sentence}")
        typer.echo(
            f"{found.num_outputs} outputs, {found.num_checkpoints} checkpoints and {found.num_records} records read,"
            f" {len(found.problems)} objects differ"
        )
    return DataError.exit_code if found.problems else 0


def gc(
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest runs keep all their outputs.")],
    keep_releases: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUM",
            help="How many exports that served under each name are kept; all without it.",
            show_default=False,
        ),
    ] = None,
    store: options.Store = "",
    delete: Annotated[
        bool, typer.Option("--delete", help="Really delete; without it, only show what would go.")
    ] = False,
    json_output: AsJson = False,
) -> None:
    """Find outputs that no kept run, live run or release needs; --delete removes them, manifests first."""
    from stagecoach_workflows.bucket.gc import delete_garbage, plan_gc

    opened = open_bucket(store)
    plan = plan_gc(opened, keep, keep_releases=keep_releases)
    if json_output:
        echo_json(
            {"garbage": [asdict(item) for item in plan.garbage], "kept": plan.kept, "size_bytes": plan.size_bytes}
        )
    else:
        echo_table(("folder", "bytes", "why"), [(item.prefix, item.size_bytes, item.reason) for item in plan.garbage])
        typer.echo(
            f"{len(plan.garbage)} folders, {plan.size_bytes} bytes, {len(plan.uploads)} interrupted uploads;"
            f" {len(plan.kept)} outputs are needed"
        )
    if delete:
        typer.echo(f"deleted {delete_garbage(opened, plan)} objects")


def open_bucket(store: str) -> ObjectStore:
    """Open the store that ``--store`` names, the folder .run/store without it; it must be there."""
    from stagecoach.settings import Settings
    from stagecoach.storage.open import open_existing_store

    return open_existing_store(store or str(options.DEFAULT_WORK / "store"), Settings.from_environ())


def echo_json(value: Any) -> None:
    """Print JSON with sorted keys."""
    typer.echo(json.dumps(value, indent=1, sort_keys=True))


def echo_table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print columns apart by two spaces, as wide as their widest cell; never cut, so that scripts can read it."""
    cells = [head, *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _age(seconds: float) -> str:
    for unit, size_seconds in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= size_seconds:
            return f"{seconds / size_seconds:.1f}{unit}"
    return f"{seconds:.0f}s"
