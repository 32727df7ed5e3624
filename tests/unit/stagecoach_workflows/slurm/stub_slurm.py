"""Programs with the names of SLURM's, for states that a cluster shows too rarely to wait for: a queue that is a file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

RUN = "20261125T013000Z-micro-slurm"
_PROGRAM = """\
#!{python} -IS
import json, sys
from pathlib import Path

folder = Path({folder!r})
name, words = Path(sys.argv[0]).name, sys.argv[1:]
options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
jobs = json.loads((folder / "queue.json").read_text())
ended = ("COMPLETED", "CANCELLED", "FAILED", "PREEMPTED", "TIMEOUT")
if name == "sbatch":
    if (folder / "full").exists() and len(jobs) >= int((folder / "full").read_text()):
        sys.exit("sbatch: error: the queue is full")
    number = str(1 + int((folder / "last").read_text()))
    (folder / "last").write_text(number)
    jobs[number] = "PENDING"
    print(number)
elif name == "squeue":
    asked = options["jobs"].split(",")
    if not set(asked) & set(jobs):
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    for number in asked:
        state = jobs.get(number)
        if state and "Format" in options:
            print(f"{{number:20}}{{state:20}}{{'None':60}}{{'0':10}}{{'':60}}")
        elif state and state not in ended:
            print(number, state)
elif name == "scancel":
    with open(folder / "cancelled", "a") as calls:
        calls.write(" ".join(words) + "\\n")
    if "signal" not in options:
        jobs.update(dict.fromkeys((word for word in words if word in jobs), "CANCELLED"))
(folder / "queue.json").write_text(json.dumps(jobs))
"""
_PLAN = """\
#!/usr/bin/env bash
# stands for the Python that plans: what is to be done is in the file `plan`
[ "$(cat {folder}/plan)" != refused ] || { echo "another recipe" >&2; exit 78; }
for task in {tasks}; do cat {folder}/plan > "$STAGECOACH_ARTIFACTS/decision-$task"; done
printf key > "$STAGECOACH_ARTIFACTS/train-key"
"""


@dataclass(frozen=True, slots=True)
class StubSlurm:
    """A cluster that runs nothing: its jobs are in the states that a test gives them."""

    folder: Path

    @property
    def programs(self) -> Path:
        """The folder that goes onto PATH."""
        return self.folder / "programs"

    @property
    def python(self) -> Path:
        """What plans a run."""
        return self.folder / "plan-program"

    @property
    def queue(self) -> dict[str, str]:
        """State by id of every job."""
        return dict(json.loads((self.folder / "queue.json").read_text()))

    def set_queue(self, states: dict[str, str]) -> None:
        """Make these the jobs."""
        (self.folder / "queue.json").write_text(json.dumps(states))

    def set_plan(self, decision: str) -> None:
        """Decide ``run`` or ``skip`` for all tasks, or ``refused``."""
        (self.folder / "plan").write_text(decision)

    def cancelled(self) -> list[str]:
        """What scancel was called with."""
        file = self.folder / "cancelled"
        return file.read_text().splitlines() if file.exists() else []

    def install(self, tasks: list[str]) -> None:
        """Write the programs."""
        self.programs.mkdir(parents=True)
        text = _PROGRAM.format(python=sys.executable, folder=str(self.folder))
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun"):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        plan = _PLAN.replace("{folder}", str(self.folder)).replace("{tasks}", " ".join(tasks))
        self.python.write_text(plan)
        self.python.chmod(0o755)
        (self.folder / "last").write_text("100")
        self.set_queue({})
        self.set_plan("run")
