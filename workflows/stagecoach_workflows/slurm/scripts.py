"""All files of one recipe on one cluster: a batch script for each task, and ``submit.sh``, which submits them.

    ./submit.sh RUN_ID [FOLDER]

``submit.sh`` plans the run where it is called, so that a bad recipe is refused before anything waits in a queue and
a run with nothing to do submits nothing; then it submits each task that has something to do with dependencies on the
tasks whose outputs it reads. ``stagecoach run --runner slurm`` calls the very same file.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from stagecoach.recipe.recipe import Recipe
from stagecoach.stages import TASKS
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.interpret import Graph, Step, TaskSpec, read_workflow
from stagecoach_workflows.render import template_document
from stagecoach_workflows.slurm.config import SlurmConfig
from stagecoach_workflows.slurm.runtime import Place, image_name, shell_words
from stagecoach_workflows.slurm.script import RUN, STATUS, BatchTask, batch_script, stage_arguments

SUBMIT = "submit.sh"
RECIPE = "recipe.base64"
_RECIPE = f'$(< "$here/{RECIPE}")'
_LEFT_OVER_SECONDS = 3600.0
_PLAN = "plan"
NOTIFY = "notify"
PROBE = "probe"
_PLAN_OUTPUT = "tasks.plan.outputs.parameters."

_SUBMIT_HEAD = """\
#!/usr/bin/env bash
# Plans recipe {recipe} here, then submits a job for each task that has something to do: ./submit.sh RUN_ID [FOLDER]
# FOLDER (./RUN_ID) gets logs, progress and the ids of the jobs; it and the store must be there on every node.
set -Eeuo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "$0")" && pwd)
run=${{1:?usage: submit.sh RUN_ID [FOLDER]}} folder=${{2:-$PWD/$1}}
mkdir -p "$folder/logs" "$folder/plan/artifacts"
folder=$(cd "$folder" && pwd)

# of two submissions at once one is refused; mkdir holds on every shared file system, locks do not
if ! said=$(LC_ALL=C mkdir "$folder/submitting" 2>&1); then
  if [ -d "$folder/submitting" ]; then
    by=$(cat "$folder/submitting/by" 2> /dev/null) || by="another process"
    said="run $run is being submitted already, by $by; wait for it, or remove $folder/submitting if it is gone"
  elif [[ $said == *"File exists"* ]]; then
    said="run $run was being submitted a moment ago; try again"
  fi
  echo "$said" >&2
  exit 78
fi
jobs=""  # the list of the jobs that were submitted and are not yet a run
leave() {{
  [ -z "$jobs" ] || cut -f 2 "$jobs" | xargs -r scancel || :  # never half a run
  rm -rf "$folder/submitting"
}}
trap leave EXIT
echo "process $$ of $(id -un) on $(uname -n)" > "$folder/submitting/by"

if [ -s "$folder/jobs" ]; then  # beside live jobs of an earlier submission, new ones would do the same work twice
  states=$(squeue --noheader --format='%i %T' --jobs="$(cut -f 2 "$folder/jobs" | paste -sd , -)" 2>&1) ||
    [[ $states == *"Invalid job id"* ]] || {{ echo "squeue: $states" >&2; exit 69; }}
  live=""
  while read -r task id; do
    state=$(sed -n "s/^$id //p" <<< "$states")
    # a job that left its exit code is past its last line
    if [[ $state =~ ^(RUNNING|COMPLETING)$ && -e $folder/$task/exit ]]; then continue; fi
    live+=${{state:+, $task ($id, $state)}}
  done < "$folder/jobs"
  if [ -n "$live" ]; then
    echo "run $run has jobs that have not ended: ${{live#, }}; wait for them, or cancel the run" >&2
    exit 78
  fi
fi

STAGECOACH_ARTIFACTS=$folder/plan/artifacts {plan}

plan() {{ cat "$folder/plan/artifacts/$1"; }}
declare -A after  # task -> ids of the jobs that have to end well before its readers start

job() {{  # NAME DEPENDENCY [OPTION ...] -> its id
  local id
  rm -f "$folder/$1/exit" "$folder/$1/progress"  # of an earlier submission
  id=$(sbatch --parsable --output="$folder/logs/$1.log" ${{2:+--dependency="$2"}} "${{@:3}}" "$here/$1.sbatch" "$run" "$folder")
  printf '%s\\t%s\\n' "$1" "${{id%%;*}}" >> "$jobs"
  printf '%s' "${{id%%;*}}"
}}

submit() {{  # TASK MUTEX READS ...
  local task=$1 mutex=$2 ids="" dependency options=()
  for other in "${{@:3}}"; do ids+=" ${{after[$other]}}"; done
  after[$task]=$ids
  [ "$(plan "decision-$task")" = run ] || return 0
  dependency=$(tr -s ' ' '\\n' <<< "$ids" | sort -un | sed '/^$/d' | paste -sd : -)
  dependency=${{dependency:+afterok:$dependency}}
  # two runs that want the same training: the second one waits, then finds it done
  if [ -n "$mutex" ]; then dependency=${{dependency:+$dependency,}}singleton options=(--job-name="$mutex"); fi
  after[$task]=$(job "$task" "$dependency" ${{options+"${{options[@]}}"}})
}}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scripts:
    """Everything that one recipe needs on one cluster."""

    tasks: tuple[BatchTask, ...]
    files: Mapping[str, str]
    """Text by name."""

    @classmethod
    def of(cls, recipe: Recipe, deployment: Deployment, config: SlurmConfig, store_url: str) -> Scripts:
        """Make them.

        Args:
            recipe: The recipe.
            deployment: Names the images.
            config: The cluster.
            store_url: Where everything is kept.

        Raises:
            ConfigError: The workflow needs something that cannot be had on SLURM.
        """
        graph = read_workflow(template_document(recipe, deployment), scheduled=True)
        place = Place(store=store_url, sources=_source_folders(recipe))
        values = _values(graph, store_url)
        tasks = [_batch_task(graph, task, values, recipe) for task in graph.tasks if task.name != _PLAN]
        if NOTIFY in graph.steps:
            tasks.append(_notify(graph.steps[NOTIFY], values, config, recipe))
        images = dict.fromkeys(image_name(task.step.image, config) for task in tasks)
        tasks = [_probe(graph.steps[_PLAN], store_url, recipe, _look_for(tuple(images), config)), *tasks]
        files = {f"{task.name}.sbatch": batch_script(task, config, place) for task in tasks}
        files |= {RECIPE: f"{graph.parameters['recipe']}\n", SUBMIT: _submit(graph, values, config, recipe)}
        return cls(tasks=tuple(tasks), files=files)

    def write(self, folder: Path) -> None:
        """Write the files, each at once: a shell may be reading the one before; ``submit.sh`` can be executed."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            _remove_left_overs(folder, name)
            new = folder / f".{name}.{secrets.token_hex(4)}.new"
            try:
                new.write_text(text, encoding="utf-8")
                if name == SUBMIT:
                    new.chmod(0o755)
                new.replace(folder / name)
            finally:
                new.unlink(missing_ok=True)


def _remove_left_overs(folder: Path, name: str) -> None:
    """Remove what a killed writer of a file left; a younger one may belong to a writer on another node."""
    for new in folder.glob(f".{name}.*.new"):
        with suppress(FileNotFoundError):
            if time.time() - new.stat().st_mtime > _LEFT_OVER_SECONDS:
                new.unlink()


def _values(graph: Graph, store_url: str) -> dict[str, str]:
    """Return the workflow's values by tag; the run's id is the scripts' own argument."""
    parameters = {**graph.parameters, "store": store_url, "run": RUN, "runner": "slurm"}
    return {
        "workflow.name": graph.name,
        "workflow.creationTimestamp.s": "0",
        "workflow.namespace": "slurm",
        "workflow.status": STATUS,
        **{f"workflow.parameters.{name}": value for name, value in parameters.items()},
        f"{_PLAN_OUTPUT}run-id": RUN,
    }


def _batch_task(graph: Graph, task: TaskSpec, values: Mapping[str, str], recipe: Recipe) -> BatchTask:
    step = graph.step_of(task)
    given = {name: value.replace(f"{{{{{_PLAN_OUTPUT}run-id}}}}", RUN) for name, value in task.arguments.items()}
    return BatchTask(
        name=task.name,
        kind=_kind(task.name),
        step=step,
        arguments=stage_arguments(step, given, values),
        recipe=recipe.name,
    )


def _kind(task: str) -> str:
    return max((kind for kind in TASKS if task == kind or task.startswith(f"{kind}-")), key=len)


def _look_for(images: Sequence[str], config: SlurmConfig) -> tuple[str, ...]:
    """Return the lines that look for images from a node: on its disk, else in their registry; none is fetched.

    Apptainer has no way to ask a registry without the image, so its ``docker://`` references are not looked for.
    """
    if config.runtime == "none" or (config.runtime == "apptainer" and config.images is None):
        return ()
    there, where = (
        '[ -e "$image" ]',
        "is not on this node; put it on a file system that all nodes share, or correct images",
    )
    if config.runtime == "podman":
        there = 'podman image exists "$image" || podman manifest inspect "docker://$image" > /dev/null'
        where = "is neither on this node nor in its registry; push it, or correct --images"
    return (
        f"for image in {' '.join(quote(image) for image in images)}; do",
        f"  {there} || {{",
        f'    echo "image $image {where}" >&2',
        '    echo 66 > "$folder/exit"; exit 66; }',
        "done",
    )


def _probe(plan: Step, store_url: str, recipe: Recipe, before: tuple[str, ...]) -> BatchTask:
    """Read the plan from a compute node: proves that it sees the store, the run's folder and Stagecoach itself."""
    step = _small(plan, ("python", "-m", "stagecoach_workflows"))
    arguments = ("show", RUN, f"--store={store_url}")
    return BatchTask(name=PROBE, kind=PROBE, step=step, arguments=arguments, recipe=recipe.name, before=before)


def _notify(step: Step, values: Mapping[str, str], config: SlurmConfig, recipe: Recipe) -> BatchTask:
    arguments = [argument for argument in stage_arguments(step, {}, values) if not argument.startswith("--secrets=")]
    given = [f"--secrets={config.notify}"] if config.notify is not None else []
    before = (
        "# every submitted task has left exit code 0, or the run has failed",
        "status=Succeeded; while read -r task _; do case $task in probe|notify) continue; esac",
        '  [ "$(cat "$2/$task/exit" 2>/dev/null)" = 0 ] || status=Failed; done < "$2/jobs"',
    )
    return BatchTask(
        name=NOTIFY,
        kind=NOTIFY,
        step=_small(step, step.command),
        arguments=(*arguments, "--runner=slurm", *given),
        recipe=recipe.name,
        before=before,
    )


def _small(step: Step, command: tuple[str, ...]) -> Step:
    return replace(step, command=command, asks={**step.asks, "memory": "1Gi"}, timeout_seconds=600.0, retry=None)


def _submit(graph: Graph, values: Mapping[str, str], config: SlurmConfig, recipe: Recipe) -> str:
    plan = graph.steps[_PLAN]
    given = {**values, "workflow.parameters.recipe": _RECIPE}
    words = [config.python or "python", *plan.command[1:], *stage_arguments(plan, {}, given)]
    lines = [_SUBMIT_HEAD.format(recipe=recipe.name, plan=" ".join(shell_words(words, (RUN, _RECIPE))))]
    lines += [
        'if ! grep -qsx run "$folder"/plan/artifacts/decision-*; then',
        '  : >> "$folder/jobs"',
        '  echo "nothing to do" >&2',
        "  exit 0",
        "fi",
        "",
        "# the list of an earlier submission stays until this one is accepted",
        "jobs=$folder/jobs.new",
        ': > "$jobs"',
        f"after[plan]=$(job {PROBE} '')",
        'mv "$jobs" "$folder/jobs"',
        "jobs=$folder/jobs",
    ]
    for task in graph.tasks:
        if task.name == _PLAN:
            continue
        reads = " ".join(task.depends)
        if config.downloads_here and task.name.startswith("download"):
            lines.append(
                f'after[{task.name}]=${{after[plan]}}; [ "$(plan decision-{task.name})" != run ]'
                f' || bash "$here/{task.name}.sbatch" "$run" "$folder" 2>&1 | tee -a "$folder/logs/{task.name}.log"'
            )
            continue
        lines.append(f"submit {task.name} {_mutex(graph, task)} {reads}")
    if NOTIFY in graph.steps:
        lines.append(f'job {NOTIFY} "afterany:$(cut -f 2 "$jobs" | paste -sd : -)" > /dev/null')
    # accepted: that nobody reads the list is no reason to withdraw it
    lines += ['submitted=$jobs jobs=""', 'cat "$submitted"']
    return "\n".join(lines) + "\n"


def _mutex(graph: Graph, task: TaskSpec) -> str:
    """Return the shell word for the name that only one such job may hold: SLURM's singleton is one of a job name."""
    mutex = graph.step_of(task).mutex
    if mutex is None:
        return "''"
    name = mutex
    for parameter, value in task.arguments.items():
        shell = value.replace("{{", "$(plan ").replace("}}", ")").replace(_PLAN_OUTPUT, "")
        name = name.replace(f"{{{{inputs.parameters.{parameter}}}}}", shell)
    return f'"{name}"'


def _source_folders(recipe: Recipe) -> tuple[Path, ...]:
    """Return the folders of a recipe's directory sources."""
    sources: list[Any] = [recipe.model.source, recipe.model.tokenizer, *(item.source for item in recipe.data.sources)]
    return tuple(
        Path(source.path).expanduser().absolute()
        for source in sources
        if source is not None and source.kind == "directory"
    )
