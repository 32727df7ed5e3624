"""The batch script of one task, as text that a person can read, change and submit by hand.

    sbatch train.sbatch RUN_ID FOLDER      FOLDER holds logs, progress and exit codes of the run

A script knows its recipe and cluster, not its run. Trying again is SLURM's own requeue, after the exit codes of the
built workflow's retry rule: the job keeps its id, so what depends on it goes on waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from shlex import quote

from stagecoach.errors import ConfigError, InterruptedWithProgress
from stagecoach_workflows.interpret import Step, substitute
from stagecoach_workflows.policy import GPU_RESOURCE, RETRY_EXIT_CODES
from stagecoach_workflows.slurm.config import JobOptions, SlurmConfig, time_seconds
from stagecoach_workflows.slurm.runtime import RUN_FOLDER, SCRATCH, Place, launch_words, shell_words

RUN = "$run"
STATUS = "$status"
_SHELL_VARIABLES = (RUN, RUN_FOLDER, SCRATCH, STATUS)
_KILLED_EXIT_CODE = 137
_SAVING_SECONDS = 180
_OF_RUNTIME_NONE_ONLY_A_CONTAINER_KNOWS = ("STAGECOACH_IMAGE_DIGEST",)
_SUFFIX_MIB = {"Mi": 1, "Gi": 1024}


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTask:
    """One batch script to be: a task, what it runs, and what the cluster is asked for."""

    name: str
    kind: str
    """Row of ``stagecoach.stages.TASKS``, ``probe`` or ``notify``."""
    step: Step
    arguments: tuple[str, ...]
    """Arguments of the stage, tags replaced; ``$run`` stands for the run id."""
    recipe: str
    before: tuple[str, ...] = ()
    """Lines of shell before the stage starts."""

    @property
    def num_gpus(self) -> int:
        """GPUs that the workflow asks for on each node."""
        return int(self.step.asks.get(GPU_RESOURCE, "0"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one task asks the scheduler for."""

    nodes: int
    cpus: int
    """On each node, as are memory and GPUs."""
    memory_mib: int
    gpus: int
    gpu_type: str | None
    time: str
    partition: str | None


def stage_arguments(step: Step, given: Mapping[str, str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return a step's arguments with every tag replaced.

    Args:
        step: The step.
        given: Its input parameters.
        values: The workflow's values by tag.
    """
    known = {**values, **{f"inputs.parameters.{name}": value for name, value in given.items()}}
    return tuple(substitute(argument, known, f"template {step.name}") for argument in step.args)


def batch_script(task: BatchTask, config: SlurmConfig, place: Place) -> str:
    """Return the script."""
    wanted = asked(task, config)
    lines = [
        "#!/usr/bin/env bash",
        f"# {task.name} of recipe {task.recipe}: sbatch {task.name}.sbatch RUN_ID FOLDER",
        *_directives(task, wanted, config.options(task.kind)),
        "set -uo pipefail",
        "",
        f"run=$1 folder=$2/{task.name} log=$2/logs/{task.name}.log scratch={_scratch(config)}",
        'mkdir -p "$folder/artifacts" && rm -f "$folder/exit"',
        '[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || rm -f "$folder/attempts" "$folder/progress"',
        'if [ -n "${SLURM_JOB_ID:-}" ]; then',
        f'  step=(srun --nodes={task.step.num_nodes} --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=120)',
        "else",
        "  step=()  # run by hand, on this machine",
        "fi",
        *_environment(task, config),
        *_modules(config),
        *task.before,
        f'{_on_each_node(task)}mkdir -p "$scratch"',
        "",
        "trap : TERM  # the stage is told to save by --signal; this shell lives to see its exit code",
        f'"${{step[@]}}" {_command(task, config, place, wanted.gpus)}',
        "code=$?",
        f'{_on_each_node(task)}rm -rf "$scratch"',
        *_ending(task.step),
    ]
    return "\n".join(lines) + "\n"


def asked(task: BatchTask, config: SlurmConfig) -> Asked:
    """Return what the scheduler is asked for: what the workflow says, with the cluster's options over it."""
    step, options = task.step, config.options(task.kind)
    memory_mib = round(options.memory_gib * 1024) if options.memory_gib else _mib(step.asks.get("memory", "1Gi"))
    return Asked(
        nodes=step.num_nodes,
        cpus=options.cpus or max(1, math.ceil(_cores(step.asks.get("cpu", "1")))),
        memory_mib=memory_mib,
        gpus=(options.gpus or task.num_gpus) if task.num_gpus else 0,
        gpu_type=options.gpu_type if task.num_gpus else None,
        time=options.time or _time(step.timeout_seconds or 3600.0),
        partition=options.partition,
    )


def _directives(task: BatchTask, wanted: Asked, options: JobOptions) -> list[str]:
    """Return the ``#SBATCH`` lines."""
    memory_mib = wanted.memory_mib
    values = {
        "job-name": f"stagecoach-{task.name}",
        "nodes": str(wanted.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(wanted.cpus),
        "mem": f"{memory_mib // 1024}G" if memory_mib % 1024 == 0 else f"{memory_mib}M",
        "gres": f"gpu:{wanted.gpu_type}:{wanted.gpus}" if wanted.gpu_type else f"gpu:{wanted.gpus}",
        "time": wanted.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "reservation": options.reservation,
        "signal": f"TERM@{min(_SAVING_SECONDS, int(time_seconds(wanted.time) / 3))}",
        "open-mode": "append",
    }
    if not wanted.gpus:
        del values["gres"]
    lines = [f"#SBATCH --{name}={quote(value)}" for name, value in values.items() if value is not None]
    flags = [
        "--requeue",
        "--kill-on-invalid-dep=yes",
        *(["--exclusive"] if options.exclusive else []),
        *options.options,
    ]
    return [*lines, *(f"#SBATCH {flag}" for flag in flags)]


def _scratch(config: SlurmConfig) -> str:
    root = quote(str(config.scratch)) if config.scratch is not None else '"${TMPDIR:-/tmp}"'
    return f'{root}/stagecoach-"${{SLURM_JOB_ID:-$$}}"'


def _environment(task: BatchTask, config: SlurmConfig) -> list[str]:
    """Return the lines that set variables; artifacts lie in the run's folder, which every runtime mounts."""
    left_out = _OF_RUNTIME_NONE_ONLY_A_CONTAINER_KNOWS if config.runtime == "none" else ()
    own = {name: value for name, value in task.step.env.items() if name not in (*left_out, "STAGECOACH_ARTIFACTS")}
    lines = [
        'export STAGECOACH_ARTIFACTS="$folder/artifacts" ARGO_PROGRESS_FILE="$folder/progress"',
        'export STAGECOACH_SCRATCH="$scratch" PYTHONUNBUFFERED=1',
        *(f"export {name}={quote(value)}" for name, value in {**own, **config.environment}.items()),
    ]
    if task.step.num_nodes > 1:
        lines += [
            "# rank 0 is on the first node; SLURM_NODEID tells each of them which one it is",
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        ]
    return lines


def _modules(config: SlurmConfig) -> list[str]:
    """Return the lines that load modules; without one of them a stage would fail later, or run with something else."""
    if not config.modules:
        return []
    return [
        f"for module in {' '.join(config.modules)}; do",
        '  module load "$module" || {',
        '    echo "module $module cannot be loaded on $(uname -n); correct modules in slurm.yaml" >&2',
        f'    echo {ConfigError.exit_code} > "$folder/exit"; exit {ConfigError.exit_code}; }}',
        "done",
    ]


def _on_each_node(task: BatchTask) -> str:
    return '"${step[@]}" ' if task.step.num_nodes > 1 else ""


def _command(task: BatchTask, config: SlurmConfig, place: Place, gpus: int) -> str:
    words = launch_words(task.step, config, place, with_gpus=gpus > 0)
    return " ".join(shell_words([*words, *task.arguments], _SHELL_VARIABLES))


def _ending(step: Step) -> list[str]:
    """Return the lines after the stage: run again by requeue where its exit code says that this can help."""
    lines: list[str] = []
    if step.retry is not None:
        codes = "|".join(str(code) for code in RETRY_EXIT_CODES)
        helps = f'$code =~ ^({codes})$ && $failures -le {step.retry.limit} && -n "${{SLURM_JOB_ID:-}}"'
        lines = [
            "",
            "# an attempt that was told to end and came further than all before it is no failure",
            '{ read -r failures furthest < "$folder/attempts"; } 2>/dev/null || failures=0 furthest=0',
            'reached=$(cut -d / -f 1 "$folder/progress" 2>/dev/null)',
            f"if [[ $code = {InterruptedWithProgress.exit_code} && ${{reached:-0}} -gt $furthest ]]",
            "then furthest=$reached",
            "else failures=$((failures + 1))",
            "fi",
            'echo "$failures $furthest" > "$folder/attempts"',
            "",
            "# scancel sends the signal that also comes before a time limit; only after that one the job is still running,",
            "# and requeue would wake a cancelled job",
            'state() { squeue --noheader --states=all --format=%T --jobs="$SLURM_JOB_ID" 2>/dev/null; }',
            f"if [ $code = {_KILLED_EXIT_CODE} ] && tail -n 20 \"$log\" 2>/dev/null | grep -qi 'oom.kill'; then",
            '  echo "killed for its memory: ask for more with memory_gib in slurm.yaml" >&2',
            f"elif [[ {helps} && $(state) =~ ^(RUNNING)?$ ]]",
            "then",
            '  echo "exit code $code: this job is run again" >&2',
            '  scontrol requeue "$SLURM_JOB_ID" && exit "$code"',
            "fi",
        ]
    return [*lines, 'echo "$code" > "$folder/exit"', 'exit "$code"']


def _cores(quantity: str) -> Fraction:
    return Fraction(int(quantity[:-1]), 1000) if quantity.endswith("m") else Fraction(quantity)


def _mib(quantity: str) -> int:
    number, suffix = quantity[:-2], quantity[-2:]
    if suffix not in _SUFFIX_MIB:
        raise ConfigError(f"memory {quantity!r}: expected a quantity in Mi or Gi")
    return int(Fraction(number) * _SUFFIX_MIB[suffix])


def _time(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    days, rest = divmod(minutes, 24 * 60)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00" if days else f"{rest // 60:02d}:{rest % 60:02d}:00"
