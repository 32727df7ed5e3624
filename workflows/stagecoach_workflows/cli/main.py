"""The command line: ``stagecoach run``, ``check``, ``plan``, ``render``, ``submit`` and so on.

An error that Stagecoach raises on purpose is one sentence on standard error and its own exit code; ``--debug`` adds the
traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import Exit, TyperException

from stagecoach_workflows.cli import (
    bucket,
    cluster,
    doctor,
    export,
    logs,
    look,
    pages,
    releases,
    render,
    run,
    serve,
    shell,
)

_USAGE_EXIT_CODE = 78
_INTERRUPTED_EXIT_CODE = 130

commands = typer.Typer(
    name="stagecoach",
    help="Fine-tune language models on chat data: download, convert, shard, pack, train, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich costs as much as everything else together
)
for module in (run, look, render, cluster, logs, doctor, bucket, export, releases, pages, serve, shell):
    module.register(commands)


@commands.callback()
def _common(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Take what stands before the command."""


def app(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the console script ``stagecoach``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        result = typer.main.get_command(commands).main(
            args=[argument for argument in given if argument != "--debug"],
            prog_name="stagecoach",
            standalone_mode=False,
        )
        return result if isinstance(result, int) else 0
    except Exit as error:
        return error.exit_code
    except TyperException as error:
        sys.stderr.write(f"{error.format_message()}\nTry: stagecoach --help\n")
        return _USAGE_EXIT_CODE
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED_EXIT_CODE
    except Exception as error:
        if debug:
            from stagecoach.redaction import show_traceback

            show_traceback(error)
        return _report(error, debug=debug)


def _report(error: Exception, *, debug: bool) -> int:
    from stagecoach.errors import StagecoachError
    from stagecoach.redaction import show_traceback, without_secrets
    from stagecoach.system_errors import refusal_of_the_system

    known = error if isinstance(error, StagecoachError) else refusal_of_the_system(error)
    if known is not None:
        sys.stderr.write(without_secrets(f"{known}\n"))
        return known.exit_code
    if not debug:
        show_traceback(error)
    sys.stderr.write(without_secrets(f"a bug in Stagecoach: {type(error).__name__}: {error}\n"))
    return 70


if __name__ == "__main__":
    raise SystemExit(app())
