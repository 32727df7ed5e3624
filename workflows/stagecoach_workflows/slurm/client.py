"""Asks a SLURM cluster through its own programs: what it has, where jobs stand, and to end them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach_workflows.slurm.config import time_seconds

_PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
_JOB_FIELDS = (("JobID", 20), ("State", 20), ("Reason", 60), ("RestartCnt", 10), ("NodeList", 60))
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
)
_GPU = re.compile(r"gpu(?::([A-Za-z0-9_.-]+))?:(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node in one partition."""

    name: str
    partition: str
    is_default: bool
    """Its partition is the one that jobs get without a name."""
    cpus: int
    memory_mib: int
    gpus: dict[str, int] = field(default_factory=dict)
    """Type -> number; type ``""`` where the cluster names none."""
    max_seconds: float
    """Longest time limit of the partition."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job that SLURM still knows."""

    job_id: str
    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETED``, ``FAILED``, .. as squeue says."""
    reason: str
    restarts: int
    nodes: str

    @property
    def is_live(self) -> bool:
        """Whether it waits, runs or is held in any way."""
        return self.state not in _ENDED


class Slurm:
    """The cluster that this machine submits to."""

    def __init__(self) -> None:
        """Find the programs.

        Raises:
            ConfigError: One of them is not on PATH.
        """
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            raise ConfigError(
                f"--runner slurm: expected the program {missing[0]} on PATH, found none;"
                " call it on a login node of the cluster, or `module load slurm`"
            )

    def nodes(self) -> list[Node]:
        """Return every node of every partition that this user may see."""
        text = self._ask("sinfo", "--noheader", "--Node", "--format=%N|%P|%c|%m|%G|%l")
        found = []
        for line in text.splitlines():
            name, partition, cpus, memory, gres, limit = line.split("|")
            found.append(
                Node(
                    name=name,
                    partition=partition.rstrip("*"),
                    is_default=partition.endswith("*"),
                    cpus=int(cpus.rstrip("+")),
                    memory_mib=int(memory.rstrip("+")),
                    gpus=_gpus(gres),
                    max_seconds=time_seconds(limit),
                )
            )
        return found

    def jobs(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Return the jobs that SLURM still knows, by id; it forgets ended ones after some minutes."""
        if not job_ids:
            return {}
        layout = ",".join(f"{name}:{width}" for name, width in _JOB_FIELDS)
        try:
            text = self._ask(
                "squeue", "--noheader", "--states=all", f"--jobs={','.join(job_ids)}", f"--Format={layout}"
            )
        except ConfigError as error:
            if "Invalid job id" in str(error):
                return {}
            raise
        found = {}
        for line in text.splitlines():
            values, start = [], 0
            for _, width in _JOB_FIELDS:
                values.append(line[start : start + width].strip())
                start += width
            job_id, state, reason, restarts, nodes = values
            found[job_id] = Job(job_id=job_id, state=state, reason=reason, restarts=int(restarts or 0), nodes=nodes)
        return found

    def end(self, job_ids: Sequence[str], *, at_once: bool) -> None:
        """End jobs: those that run by SIGTERM, after which they save and are not run again, all others at once.

        Args:
            job_ids: The jobs.
            at_once: Do not wait for them to save.
        """
        live = [job for job in self.jobs(job_ids).values() if job.is_live]
        saving = [] if at_once else [job.job_id for job in live if job.state in ("RUNNING", "COMPLETING")]
        self._cancel(*(job.job_id for job in live if job.job_id not in saving))
        for job_id in saving:
            self._end("scontrol", "update", f"JobId={job_id}", "Requeue=0")
            self._cancel("--signal=TERM", job_id)

    def _cancel(self, *words: str) -> None:
        if words:
            self._end("scancel", *words)

    def _end(self, *command: str) -> None:
        """Call a program that ends jobs; one that has ended in the meantime is as it should be."""
        try:
            self._ask(*command)
        except ConfigError as error:
            if not re.search(r"already|Invalid job id|^SLURM: scancel: exit code", str(error)):
                raise

    def _ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip() or f"exit code {done.returncode}"
        if re.search(r"Unable to contact|Connection refused|timed out|DNS SRV", said):
            raise UnavailableError(f"SLURM: {command[0]}: the controller does not answer: {said.splitlines()[-1]}")
        raise ConfigError(f"SLURM: {command[0]}: {said}")


def _gpus(gres: str) -> dict[str, int]:
    """Return the GPUs in ``gpu:a100:4(S:0-1),gpu:2``."""
    found: dict[str, int] = {}
    for kind, number in _GPU.findall(gres):
        found[kind] = found.get(kind, 0) + int(number)
    return found
