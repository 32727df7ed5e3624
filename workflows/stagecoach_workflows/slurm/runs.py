"""One run on a SLURM cluster: its jobs, where they stand, what they wrote, and how it is ended.

What is known lies in ``<work>/<run id>/``: ``jobs`` (task and job id, a line each, written by ``submit.sh``), ``logs/``,
``slurm/`` (the batch scripts) and a folder for each task with its exit code, its progress and its artifacts.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecoach.errors import ConfigError, DataError, MissingInputError, StagecoachError, UnavailableError
from stagecoach_workflows.engine import TaskRun
from stagecoach_workflows.interpret import TaskSpec
from stagecoach_workflows.slurm.client import Job, Slurm
from stagecoach_workflows.slurm.scripts import NOTIFY, PROBE, SUBMIT
from stagecoach_workflows.workflow_state import NodeState, WorkflowState

_JOBS_FILE = "jobs"
_SCRIPTS_FOLDER = "slurm"
_POLL_SECONDS = 1.0
_CANCELLED = "cancelled"
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "SPECIAL_EXIT")
_ERROR_OF_CODE: dict[int, type[StagecoachError]] = {
    error.exit_code: error for error in (ConfigError, DataError, MissingInputError, UnavailableError)
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmRun:
    """A run that was submitted, or is going to be."""

    run_id: str
    folder: Path

    @property
    def is_submitted(self) -> bool:
        """Whether ``submit.sh`` was called for it."""
        return (self.folder / _JOBS_FILE).is_file()

    @property
    def scripts(self) -> Path:
        """Folder of its batch scripts."""
        return self.folder / _SCRIPTS_FOLDER

    def submit(self) -> dict[str, str]:
        """Plan the run, submit its jobs, and return their ids by task; none if there is nothing to do.

        Raises:
            StagecoachError: The plan was refused, or a job was; the sentence is what was said last.
        """
        before = self.jobs() if self.is_submitted else {}
        command = ["bash", str(self.scripts / SUBMIT), self.run_id, str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            # what sbatch and the shell say has no code of ours: an option that this cluster does not take
            error = _ERROR_OF_CODE.get(done.returncode, ConfigError)
            raise error("\n".join(_sentences(lines)) or f"{SUBMIT} ended with exit code {done.returncode}")
        jobs = self.jobs()
        return jobs if jobs != before else {}

    def jobs(self) -> dict[str, str]:
        """Return the job's id by task, in the order of submission.

        Raises:
            MissingInputError: The run was not submitted.
        """
        try:
            text = (self.folder / _JOBS_FILE).read_text(encoding="utf-8")
        except OSError as error:
            raise MissingInputError(f"run {self.run_id}: expected its jobs in {self.folder}, found none") from error
        return dict(line.split("\t", 1) for line in text.splitlines())

    def exit_code(self, task: str) -> int | None:
        """Return the exit code that a task left; None if it has not ended by itself."""
        try:
            return int((self.folder / task / "exit").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def log(self, task: str) -> Path:
        """Return the file with what a task wrote."""
        return self.folder / "logs" / f"{task}.log"

    def last_sentence(self, task: str) -> str:
        """Return what a task said last."""
        return self._task(task).last_sentence()

    def progress(self, task: str) -> tuple[float, str]:
        """Return the share that is done, 0 to 1, and the stage's note."""
        return self._task(task).progress()

    def _task(self, task: str) -> TaskRun:
        return TaskRun(spec=TaskSpec(name=task, template=task), folder=self.folder / task, log=self.log(task))


class SlurmRuns:
    """The runs in one work folder, looked at through the cluster."""

    def __init__(self, slurm: Slurm, work: Path) -> None:
        """Keep both."""
        self._slurm = slurm
        self._work = work

    def state(self, name: str) -> WorkflowState:
        """Return where a run stands, from SLURM's queue and what the jobs left in the run's folder."""
        run = find_run(self._work, name)
        ids = run.jobs()
        known = self._slurm.jobs(list(ids.values()))
        nodes = tuple(_node(run, task, known.get(job_id), job_id) for task, job_id in ids.items())
        own = [node for node in nodes if node.task not in (PROBE, NOTIFY)]
        phase, message = _phase(run, nodes, own)
        return WorkflowState(
            name=run.run_id, run_id=run.run_id, phase=phase, message=message, started="", finished="", nodes=nodes
        )

    def end(self, run: SlurmRun, *, at_once: bool) -> None:
        """Cancel a run: train saves what it has, unless ``at_once``."""
        ids = {task: job_id for task, job_id in run.jobs().items() if task != NOTIFY or at_once}
        self._slurm.end(list(ids.values()), at_once=at_once)

    def wait_for_probe(self, run: SlurmRun, timeout_seconds: float) -> bool:
        """Wait until a compute node has read the plan; False where the probe still waits in the queue.

        Raises:
            StagecoachError: The compute nodes cannot use the store, the run's folder or Stagecoach.
        """
        job_id = run.jobs()[PROBE]
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            code, job = run.exit_code(PROBE), self._slurm.jobs([job_id]).get(job_id)
            if code == 0:
                return True
            if code is not None or job is None or not job.is_live:
                self._slurm.end(list(run.jobs().values()), at_once=True)
                raise _probe_error(run, code)
            time.sleep(_POLL_SECONDS)
        return False

    def follow_log(self, run: SlurmRun, task: str) -> Iterator[str]:
        """Yield a task's lines, old and new, until its job ends."""
        job_id = run.jobs()[task]
        position = 0
        while True:
            job = self._slurm.jobs([job_id]).get(job_id)
            lines, position = _lines_from(run.log(task), position)
            yield from lines
            if job is None or not job.is_live:
                return
            time.sleep(_POLL_SECONDS)


def find_run(work: Path, run_id: str) -> SlurmRun:
    """Return the run of that id in a work folder; it need not have been submitted."""
    return SlurmRun(run_id=run_id, folder=work.absolute() / run_id)


def tail(file: Path, lines: int | None) -> list[str]:
    """Return a file's last lines; all without a number, none where there is no file yet."""
    try:
        found = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return found if lines is None else found[-lines:] if lines else []


def _node(run: SlurmRun, task: str, job: Job | None, job_id: str) -> NodeState:
    code = run.exit_code(task)
    state = job.state if job is not None else ""
    restarts = job.restarts if job is not None else 0
    share, note = run.progress(task)
    if state in _WAITING:
        phase, message = "Pending", job.reason if job is not None else ""
    elif job is not None and job.is_live and code is None:
        phase, message = "Running", note
    elif code == 0 or (code is None and state == "COMPLETED"):
        phase, message = "Succeeded", ""
    elif code is not None:
        phase, message = "Failed", f"exit code {code}: {run.last_sentence(task).partition(chr(10))[0]}"
    elif state == "CANCELLED":
        phase, message = "Omitted", _CANCELLED
    else:
        phase = "Failed" if state else "Omitted"  # SLURM forgets those that never started as well
        message = f"ended without an exit code{state and f', SLURM says {state}'}; ask `sacct -j {job_id}`"
    return NodeState(
        task=task,
        phase=phase,
        progress=share,
        attempts=restarts + 1,
        started="",
        finished="",
        message=message,
        exit_code=code,
        node_id=job_id,
    )


def _phase(run: SlurmRun, nodes: Sequence[NodeState], own: Sequence[NodeState]) -> tuple[str, str]:
    if any(node.phase in ("Pending", "Running") for node in nodes):
        return "Running", ""
    failed = [node for node in nodes if node.phase == "Failed" and node.task != NOTIFY]
    if failed:
        return "Failed", f"{failed[0].task}: {failed[0].message}; log: {run.log(failed[0].task)}"
    omitted = [node for node in own if node.phase == "Omitted"]
    unknown = [node for node in omitted if node.message != _CANCELLED]
    if omitted:
        return "Failed", f"{unknown[0].task}: {unknown[0].message}" if unknown else _CANCELLED
    return "Succeeded", "" if nodes else "nothing to do, no job was submitted"


def _probe_error(run: SlurmRun, code: int | None) -> StagecoachError:
    said = run.last_sentence(PROBE)
    if code is None and not said:
        return ConfigError(
            f"the probe job on a compute node ended without a word: {run.folder} is probably not there;"
            " choose a --work folder on a file system that all nodes share"
        )
    error = _ERROR_OF_CODE.get(code or 0, ConfigError)
    return error(f"a compute node cannot take part (probe job, log {run.log(PROBE)}): {said}")


def _sentences(lines: Sequence[str]) -> list[str]:
    """Return sbatch's own errors where it said some, else the last line."""
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line.startswith("sbatch: ")]
    return [f"sbatch: {'; '.join(said)}"] if said else list(lines[-1:])


def _lines_from(file: Path, position: int) -> tuple[list[str], int]:
    try:
        with open(file, "rb") as stream:
            stream.seek(position)
            data = stream.read()
    except OSError:
        return [], position
    whole, newline, _ = data.rpartition(b"\n")
    return whole.decode("utf-8", "replace").splitlines(), position + len(whole) + len(newline)
