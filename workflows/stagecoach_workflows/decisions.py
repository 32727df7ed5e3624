"""What one run has to do: every task's config, content key and output, and whether it must run.

The keys come first, from the recipe and the identities of its sources alone. Then the store is asked, from ``export``
backwards: a task runs only if its output (or a wanted effect: a push, a release) is missing and something missing needs
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from stagecoach.keys import canonical_json, content_key
from stagecoach.paths import manifest_key, output_prefix
from stagecoach.plan_file import Plan, TaskPlan
from stagecoach.pushes import is_pushed, push_records
from stagecoach.recipe.base import Section
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach.recipe.train import TrainConfig
from stagecoach.releases import offered, read_releases
from stagecoach.settings import Settings
from stagecoach.source_identity import HubLister, data_config, model_config, tokenizer_config
from stagecoach.stages import TASKS
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.graph import TaskNode, task_nodes
from stagecoach_workflows.warm_start import MODEL_TASK, TOKENIZER_TASK, warm_configs, without_change

_BEST_DEPENDS_ON = ("evaluate_every_steps", "save_every_steps", "keep_last", "keep_every_steps", "keep_best")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One task with everything that is known before the store is asked."""

    node: TaskNode
    config: Section
    name: str
    key: str
    output: str
    inputs: Mapping[str, str]
    """Folder of each input, by input name."""


def task_configs(
    recipe: Recipe, settings: Settings, list_hub: HubLister, store: ObjectStore | None = None
) -> Mapping[str, Section]:
    """Return every task's resolved config, by task name; sources are turned into files with known content.

    Raises:
        ConfigError: A source cannot be what it is used as.
        MissingInputError: A source does not exist or lacks files.
        UnavailableError: The Hub or an S3 store does not answer.
    """
    warm = warm_configs(recipe, store)
    configs = {
        **({} if warm else {MODEL_TASK: model_config(recipe.model.source, settings, list_hub)}),
        **warm,
        **source_configs(recipe, settings, list_hub, store),
        **{task: getattr(recipe, task) for task in TASKS if task in Recipe.model_fields},
        "pack": PackTaskConfig(data=recipe.data, pack=recipe.pack),
    }
    return without_change(recipe, configs, store, lambda found: candidates(recipe, found)["export"].output)


def source_configs(
    recipe: Recipe, settings: Settings, list_hub: HubLister, store: ObjectStore | None = None
) -> dict[str, Section]:
    """Return the resolved configs of the tasks that bring tokenizer and chat data; raises as ``task_configs`` does."""
    model = recipe.model
    configs: dict[str, Section] = {}
    warm = warm_configs(recipe, store).get(TOKENIZER_TASK) if model.tokenizer is None else None
    configs[TOKENIZER_TASK] = warm or tokenizer_config(
        model.tokenizer or model.source, model.chat_format, settings, list_hub
    )
    for source in recipe.data.sources:
        configs[f"download-data-{source.name}"] = data_config(source.source, settings, list_hub)
    return configs


def candidates(recipe: Recipe, configs: Mapping[str, Section]) -> dict[str, Candidate]:
    """Return every task of ``configs`` with its key and folders, in an order in which they may run."""
    found: dict[str, Candidate] = {}
    for task, node in task_nodes([source.name for source in recipe.data.sources]).items():
        if task not in configs:
            continue
        config = configs[task]
        input_keys = {name: found[other].key for name, other in node.key_inputs.items()}
        if task == "export" and recipe.export.iteration == "best":
            input_keys["best"] = _what_decides_the_best(recipe.train)
        key = content_key(node.kind.name, node.kind.output_version, config, input_keys)
        name = recipe.model.name if node.kind.named_after == "model" else node.data_source or recipe.data.name
        found[task] = Candidate(
            node=node,
            config=config,
            name=name,
            key=key,
            output=output_prefix(node.kind.writes, name, key),
            inputs={input_name: found[other].output for input_name, other in node.reads.items()},
        )
    return found


def decide(
    store: ObjectStore, tasks: Mapping[str, Candidate], recipe: Recipe, settings: Settings
) -> dict[str, TaskPlan]:
    """Ask the store what is there and return each task's decision, in an order in which they may run.

    A finished run costs one question: whether the export is there.
    """
    wanted_by: dict[str, str] = {"export": ""}
    plans: dict[str, TaskPlan] = {}
    for task in reversed(list(tasks)):
        candidate = tasks[task]
        missing, reason = False, "nothing that is missing needs it"
        if task in wanted_by:
            missing, reason = _missing(store, candidate, wanted_by[task])
        if task == "export" and not missing:
            missing, reason = _missing_effect(store, candidate, recipe, settings, reason)
        if missing:
            for other in candidate.node.reads.values():
                wanted_by.setdefault(other, task)
        plans[task] = _task_plan(candidate, run=missing, reason=reason)
    return {task: plans[task] for task in tasks}


def decide_again(store: ObjectStore, plan: Plan) -> Plan:
    """Return a run's plan in which tasks run, too, whose output was there when it was made and is gone now.

    Somebody deleted it: a person who was told to because it is damaged, or ``gc`` at the same moment.
    """
    makers = {task.output: name for name, task in plan.tasks.items()}
    wanted_by: dict[str, str] = {"export": ""}
    tasks = dict(plan.tasks)
    for name, task in reversed(plan.tasks.items()):
        if name not in wanted_by:
            continue
        missing, reason = _missing(store, task, wanted_by[name])
        if missing:
            for folder in task.inputs.values():
                wanted_by.setdefault(makers[folder], name)
            if task.decision == "skip":
                tasks[name] = task.model_copy(update={"decision": "run", "reason": reason})
    return plan.model_copy(update={"tasks": tasks})


def _missing(store: ObjectStore, candidate: Candidate | TaskPlan, wanted_by: str) -> tuple[bool, str]:
    if store.head(manifest_key(candidate.output)) is not None:
        return False, "its output is there"
    return True, f"its output is missing and {wanted_by} needs it" if wanted_by else "its output is missing"


def _missing_effect(
    store: ObjectStore, export: Candidate, recipe: Recipe, settings: Settings, reason: str
) -> tuple[bool, str]:
    push, release = recipe.export.push, recipe.export.release
    if push is not None and not is_pushed(store, push_records(push, settings), export.output):
        return True, f"it is not what was last pushed to {push.branch} of {push.repo}"
    if release is not None:
        gate = recipe.export.gate.model_dump(mode="json")
        if offered(read_releases(store, release), export.output, gate) is None:
            return True, f"it has not been offered as a release of {release}"
    return False, reason


def _what_decides_the_best(train: TrainConfig) -> str:
    """Return a digest of the placement fields of train on which "best" depends: when it evaluates, saves and keeps."""
    chosen = {name: getattr(train, name) for name in _BEST_DEPENDS_ON}
    return hashlib.sha256(canonical_json(chosen).encode("ascii")).hexdigest()[:20]


def _task_plan(candidate: Candidate, *, run: bool, reason: str) -> TaskPlan:
    return TaskPlan(
        task=candidate.node.task,
        kind=candidate.node.kind.name,
        stage=candidate.node.kind.stage,
        decision="run" if run else "skip",
        reason=reason,
        name=candidate.name,
        key=candidate.key,
        output=candidate.output,
        inputs=dict(candidate.inputs),
        config=candidate.config.model_dump(mode="json"),
    )
