"""One ``stagecoach run`` on this machine: the display while it goes, signals, and what is shown at its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stagecoach.errors import ConfigError
from stagecoach.paths import validate_run_id
from stagecoach.plan_file import read_plan
from stagecoach.recipe.recipe import Recipe
from stagecoach.settings import Settings, child_environ
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach.terminal import console
from stagecoach_workflows.answers import Answer, read_answers
from stagecoach_workflows.cli.report import show_answers, show_results
from stagecoach_workflows.deployment import load_deployment
from stagecoach_workflows.display import Display
from stagecoach_workflows.docker import DockerLauncher
from stagecoach_workflows.engine import Engine, Launcher, Outcome
from stagecoach_workflows.local import LocalLauncher
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.report.write import write_report
from stagecoach_workflows.run_ids import new_run_id
from stagecoach_workflows.runs import RunOptions, make_engine, record_end

_console = console()


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalRun:
    """A recipe, a store and a run id that belong together."""

    recipe: Recipe
    store: ObjectStore
    run_id: str
    runner: Literal["local", "docker"]
    work: Path

    @classmethod
    def of(
        cls,
        recipe: str,
        settings: Sequence[str],
        *,
        runner: Literal["local", "docker"],
        store_url: str,
        run_id: str,
        work: Path,
    ) -> LocalRun:
        """Read what the user typed.

        Raises:
            ConfigError: The recipe, the store's address or the run id is not valid.
        """
        loaded = load_recipe(recipe, settings)
        return cls(
            recipe=loaded,
            store=open_store(store_url or str(work.absolute() / "store"), Settings.from_environ()),
            run_id=validate_run_id(run_id) if run_id else new_run_id(loaded.name, time.time()),
            runner=runner,
            work=work.absolute(),
        )

    def options(self, *, max_parallel: int, max_retries: int | None) -> RunOptions:
        """Return how it is run."""
        return RunOptions(
            run_id=self.run_id,
            runner=self.runner,
            folder=self.work / self.run_id,
            max_parallel=max_parallel,
            max_retries=max_retries,
        )

    def run(self, options: RunOptions, deployment_file: Path | None, images_file: Path | None) -> int:
        """Run the workflow, show how it goes, and return the exit code."""
        _console.print(f"run {self.run_id} of {self.recipe.name} in {self.store.url}")
        with Display(_console) as display:
            engine = make_engine(
                self.recipe,
                self.store,
                self._launcher(),
                options,
                deployment=load_deployment(deployment_file, images_file),
                on_tick=display,
            )
            with _signals_to(engine):
                outcome = engine.run()
        record_end(self.store, self.run_id, outcome, self.runner)
        report = options.folder / "report.html"
        if write_report(self.store, self.run_id, report):
            _console.print(f"report: {report}", soft_wrap=True)
        if outcome.exit_code:
            _explain(outcome, options.folder)
        return outcome.exit_code

    def show_results(self, answers: subprocess.Popen[str] | None, *, required: int) -> int:
        """Show what the run made and, if a process is there to be asked, its answers; return the exit code."""
        show_results(_console, self.store, read_plan(self.store, self.run_id), self.recipe)
        if answers is None:
            return 0
        given = self._asked(answers)
        show_answers(_console, given)
        good = sum(answer.good for answer in given)
        if good < required:
            sys.stderr.write(f"answers: expected at least {required} good ones of {len(given)}, got {good}\n")
            return 1
        return 0

    def _launcher(self) -> Launcher:
        if self.runner == "local":
            return LocalLauncher()
        folders = [
            Path(source.path).expanduser().absolute()
            for source in (
                self.recipe.model.source,
                self.recipe.model.tokenizer,
                *(s.source for s in self.recipe.data.sources),
            )
            if source is not None and source.kind == "directory"
        ]
        return DockerLauncher(self.store.url, gpus=self.recipe.train.gpus, folders=tuple(folders))

    @contextmanager
    def answers_beside(self, number: int) -> Iterator[subprocess.Popen[str] | None]:
        """Start the process that will be asked, so that its seconds of imports pass beside the stages; 0 starts none.

        It waits for a line on its standard input, and ends without one however this process ends.
        """
        if not number:
            yield None
            return
        command = [sys.executable, "-m", "stagecoach_workflows.answers", "--store", self.store.url]
        command += ["--run", self.run_id, "--number", str(number), "--wait"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command,
            env=child_environ(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which ends this one
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def _asked(process: subprocess.Popen[str]) -> list[Answer]:
        output, errors = process.communicate("go\n")
        if process.returncode:
            raise ConfigError(f"answers: the exported model could not be asked: {errors.strip()[-500:]}")
        return read_answers(output)


@contextmanager
def _signals_to(engine: Engine) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to the engine, which passes them on to the stages."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda received, frame: engine.stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(outcome: Outcome, folder: Path) -> None:
    if outcome.failed_task is None:
        sys.stderr.write(f"{outcome.message}\n")
        return
    log = folder / "logs" / f"{outcome.failed_task}.log"
    sys.stderr.write(
        f"{outcome.failed_task} failed with exit code {outcome.exit_code}: {outcome.message}\nlog: {log}\n"
    )
