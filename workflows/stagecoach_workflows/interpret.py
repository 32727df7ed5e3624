"""Reads a built workflow, so that a runner without Argo executes the same graph that Argo would.

Every field is on one of three lists: executed here, without meaning here, or (all others) refused by name. So a new
field in ``pipeline.py`` cannot be ignored in silence. A scheduler of its own (SLURM) also reads what a task asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from stagecoach.errors import ConfigError
from stagecoach_workflows.policy import RETRY_EXIT_CODES, RETRY_EXPRESSION

EXECUTED: Mapping[str, frozenset[str]] = {
    "document": frozenset({"spec", "metadata"}),
    "spec": frozenset({"arguments", "entrypoint", "templates"}),
    "template": frozenset({"name", "dag", "container", "inputs", "outputs", "retryStrategy"}),
    "container": frozenset({"command", "args", "env", "image", "volumeMounts"}),
    "dag": frozenset({"tasks"}),
    "task": frozenset({"name", "template", "arguments", "depends", "when"}),
    "retry": frozenset({"limit", "expression", "backoff", "retryPolicy"}),
    "backoff": frozenset({"duration", "factor", "cap"}),
    "parameter": frozenset({"name", "value", "valueFrom"}),
    "valueFrom": frozenset({"path", "default"}),
    "inputs": frozenset({"parameters"}),
    "outputs": frozenset({"parameters"}),
    "arguments": frozenset({"parameters"}),
}
"""Fields that the runners act on, by the kind of object they stand in."""

WITHOUT_MEANING: Mapping[str, frozenset[str]] = {
    "document": frozenset({"apiVersion", "kind"}),
    "spec": frozenset(
        {
            # who runs it in a cluster, and where
            "serviceAccountName",
            "automountServiceAccountToken",
            "executor",
            "securityContext",
            "imagePullSecrets",
            "tolerations",
            "nodeSelector",
            # objects of the cluster and their end
            "artifactRepositoryRef",
            "workflowMetadata",
            "podMetadata",
            "podGC",
            "ttlStrategy",
            "hooks",
            "metrics",
        }
    ),
    "template": frozenset(
        {
            "metadata",
            "metrics",
            "volumes",
            "timeout",
            "podSpecPatch",
            "synchronization",
            "affinity",
            "nodeSelector",
            "tolerations",
            "executor",
        }
    ),
    "container": frozenset({"envFrom", "imagePullPolicy", "resources", "securityContext", "terminationMessagePolicy"}),
    "retry": frozenset({"affinity"}),
    "parameter": frozenset({"description"}),
    "outputs": frozenset({"artifacts"}),
}
"""Fields that say something to a cluster only: a machine of one's own has one user, no scheduler and no quota."""

SCHEDULED: Mapping[str, frozenset[str]] = {
    "template": frozenset({"timeout", "synchronization", "resource"}),
    "container": frozenset({"resources"}),
}
"""Fields that a runner with a scheduler acts on as well; ``resource`` is a training on several nodes, a JobSet."""

_TAG = re.compile(r"\{\{(.*?)\}\}")
_WHEN = re.compile(r"'(\{\{[^{}']+\}\})' == '([^'{}]*)'")
_DURATION = re.compile(r"([0-9]+)(s|m|h)?")
_UNIT_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How often a step is tried again, and how long the runner waits before."""

    limit: int
    backoff_seconds: float
    factor: float
    cap_seconds: float

    def wait_seconds(self, failures: int) -> float:
        """Return the wait after so many failures, from 1."""
        return min(self.cap_seconds, self.backoff_seconds * self.factor ** (failures - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFile:
    """An output parameter: a small file that the step writes."""

    path: str
    default: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One container template."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: Mapping[str, str]
    mounts: Mapping[str, str]
    """Name of a volume -> its path in the container."""
    inputs: tuple[str, ...]
    outputs: Mapping[str, OutputFile]
    retry: Retry | None
    asks: Mapping[str, str] = field(default_factory=dict)
    """Resources by Kubernetes' names (``cpu``, ``memory``, ``nvidia.com/gpu``), for a scheduler."""
    timeout_seconds: float | None = None
    """Longest time of one attempt, for a scheduler."""
    mutex: str | None = None
    """Name that at most one running task may hold, with tags in it, for a scheduler."""
    num_nodes: int = 1
    """Machines that run the same command side by side; more than one for a scheduler only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of the DAG."""

    name: str
    template: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    depends: tuple[str, ...] = ()
    when: tuple[str, str] | None = None
    """A tag and the text it must be equal to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A workflow as the runners execute it."""

    name: str
    parameters: Mapping[str, str]
    tasks: tuple[TaskSpec, ...]
    steps: Mapping[str, Step]

    def step_of(self, task: TaskSpec) -> Step:
        """Return the template that a task runs."""
        return self.steps[task.template]


def read_workflow(document: Mapping[str, Any], *, scheduled: bool = False) -> Graph:
    """Return the graph of a WorkflowTemplate or Workflow, as ``to_dict()`` gives it.

    Args:
        document: The workflow.
        scheduled: The runner has a scheduler and so can run a task on several nodes.

    Raises:
        ConfigError: It has a field that the runner neither executes nor may ignore.
    """
    _check("document", document, "workflow")
    spec = document["spec"]
    _check("spec", spec, "spec")
    templates = {template["name"]: template for template in spec["templates"]}
    at_exit = {hook.get("template") for hook in spec.get("hooks", {}).values()}
    for name, template in templates.items():
        of_cluster_alone = "resource" in template or ("dag" in template and name in at_exit)
        if not (scheduled and of_cluster_alone):
            _check("template", template, f"template {name}")
    entry = templates[spec["entrypoint"]]
    if "dag" not in entry:
        raise ConfigError(f"template {entry['name']}: expected a DAG as the workflow's entrypoint")
    _check("dag", entry["dag"], f"template {entry['name']}: dag")
    tasks = tuple(_task(task) for task in entry["dag"]["tasks"])
    _check_order(tasks)
    return Graph(
        name=document["metadata"]["name"],
        parameters=_values(spec.get("arguments", {}), "spec.arguments"),
        tasks=tasks,
        steps={
            name: _step(template) if "container" in template else _job_set_step(template)
            for name, template in templates.items()
            if "container" in template or template.get("resource", {}).get("action") == "apply"
        },
    )


def substitute(text: str, values: Mapping[str, str], where: str) -> str:
    """Return ``text`` with each ``{{tag}}`` replaced once; what a value holds is never looked at again.

    Raises:
        ConfigError: A tag that has no value here.
    """

    def value(found: re.Match[str]) -> str:
        tag = found.group(1)
        if tag not in values:
            raise ConfigError(f"{where}: the tag {{{{{tag}}}}} has no value here")
        return values[tag]

    return _TAG.sub(value, text)


def duration_seconds(text: str, where: str) -> float:
    """Return the seconds of a duration such as ``10``, ``90s`` or ``5m``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"{where}: expected a duration such as 10, 90s or 5m, got {text!r}")
    return float(match.group(1)) * _UNIT_SECONDS[match.group(2)]


def _check(kind: str, value: Mapping[str, Any], where: str) -> None:
    known = EXECUTED[kind] | WITHOUT_MEANING.get(kind, frozenset())
    unknown = sorted(set(value) - known)
    if unknown:
        raise ConfigError(
            f"{where}: the field {unknown[0]!r} cannot be executed on one machine;"
            " use --runner argo or --runner slurm for this workflow"
        )


def _step(template: Mapping[str, Any]) -> Step:
    name, container = template["name"], template["container"]
    where = f"template {name}"
    _check("container", container, f"{where}: container")
    inputs, outputs = template.get("inputs", {}), template.get("outputs", {})
    _check("inputs", inputs, f"{where}: inputs")
    _check("outputs", outputs, f"{where}: outputs")
    return Step(
        name=name,
        image=container["image"],
        command=tuple(container["command"]),
        args=tuple(container.get("args", ())),
        env=_environment(container.get("env", ()), where),
        mounts={mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", ())},
        inputs=tuple(parameter["name"] for parameter in inputs.get("parameters", ())),
        outputs={item["name"]: _output_file(item, where) for item in outputs.get("parameters", ())},
        retry=_retry(template["retryStrategy"], where) if "retryStrategy" in template else None,
        **_scheduling(template, container, where),
    )


def _scheduling(template: Mapping[str, Any], container: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a step that only a scheduler reads."""
    mutexes = template.get("synchronization", {}).get("mutexes", ())
    return {
        "asks": dict(container.get("resources", {}).get("requests", {})),
        "timeout_seconds": duration_seconds(template["timeout"], where) if "timeout" in template else None,
        "mutex": mutexes[0]["name"] if mutexes else None,
    }


def _job_set_step(template: Mapping[str, Any]) -> Step:
    """Return the step that a resource template's JobSet runs on each of its nodes.

    Where the nodes meet is the runner's business: it says so by ``MASTER_ADDR`` and ``MASTER_PORT``.
    """
    where = f"template {template['name']}: resource"
    job_set = yaml.safe_load(template["resource"]["manifest"])
    if job_set.get("kind") != "JobSet":
        raise ConfigError(f"{where}: expected a JobSet, got {job_set.get('kind')!r}")
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    rules = job["podFailurePolicy"]["rules"]
    retried = [rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "Count" and "onExitCodes" in rule]
    if retried != [sorted(RETRY_EXIT_CODES)]:
        raise ConfigError(f"{where}: podFailurePolicy: expected the generated rules; no others can be executed")
    environment = [item for item in container["env"] if item["name"] not in ("MASTER_ADDR", "MASTER_PORT")]
    return Step(
        name=template["name"],
        image=container["image"],
        command=tuple(container["command"]),
        args=tuple(container["args"]),
        env=_environment(environment, where),
        mounts={mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]},
        inputs=tuple(parameter["name"] for parameter in template["inputs"]["parameters"]),
        outputs={},
        retry=Retry(
            limit=int(job_set["spec"]["failurePolicy"]["maxRestarts"]), backoff_seconds=0, factor=1, cap_seconds=0
        ),
        num_nodes=int(job["parallelism"]),
        **_scheduling(template, container, where),
    )


def _environment(env: Any, where: str) -> dict[str, str]:
    for variable in env:
        if set(variable) != {"name", "value"}:
            raise ConfigError(f"{where}: env {variable.get('name')}: only a plain value can be executed on one machine")
    return {variable["name"]: variable["value"] for variable in env}


def _output_file(parameter: Mapping[str, Any], where: str) -> OutputFile:
    _check("parameter", parameter, f"{where}: outputs")
    source = parameter["valueFrom"]
    _check("valueFrom", source, f"{where}: outputs {parameter['name']}")
    return OutputFile(path=source["path"], default=source.get("default"))


def _retry(strategy: Mapping[str, Any], where: str) -> Retry:
    _check("retry", strategy, f"{where}: retryStrategy")
    if strategy.get("expression") != RETRY_EXPRESSION or strategy.get("retryPolicy") != "Always":
        raise ConfigError(
            f"{where}: retryStrategy: expected the generated expression with policy Always; no other can be executed"
        )
    backoff = strategy.get("backoff", {})
    _check("backoff", backoff, f"{where}: retryStrategy.backoff")
    return Retry(
        limit=int(strategy["limit"]),
        backoff_seconds=duration_seconds(str(backoff.get("duration", "0")), where),
        factor=float(backoff.get("factor", 1)),
        cap_seconds=duration_seconds(str(backoff.get("cap", "1h")), where),
    )


def _task(task: Mapping[str, Any]) -> TaskSpec:
    where = f"task {task.get('name')}"
    _check("task", task, where)
    return TaskSpec(
        name=task["name"],
        template=task["template"],
        arguments=_values(task.get("arguments", {}), where),
        depends=_depends(task.get("depends", ""), where),
        when=_when(task["when"], where) if "when" in task else None,
    )


def _depends(text: str, where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split("&&")) if text else ()
    for name in names:
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise ConfigError(f"{where}: depends: expected task names joined by &&, got {text!r}")
    return names


def _when(text: str, where: str) -> tuple[str, str]:
    match = _WHEN.fullmatch(text)
    if match is None:
        raise ConfigError(f"{where}: when: expected '{{{{tag}}}}' == 'text', got {text!r}")
    return match.group(1), match.group(2)


def _values(arguments: Mapping[str, Any], where: str) -> dict[str, str]:
    _check("arguments", arguments, f"{where}: arguments")
    for parameter in arguments.get("parameters", ()):
        _check("parameter", parameter, f"{where}: parameter {parameter.get('name')}")
    return {parameter["name"]: parameter["value"] for parameter in arguments.get("parameters", ())}


def _check_order(tasks: tuple[TaskSpec, ...]) -> None:
    """Refuse a task that waits for one that does not exist or that waits for it in turn."""
    known: set[str] = set()
    waiting = list(tasks)
    while waiting:
        ready = [task for task in waiting if known.issuperset(task.depends)]
        if not ready:
            raise ConfigError(f"task {waiting[0].name}: waits for {', '.join(waiting[0].depends)}, which never all end")
        known.update(task.name for task in ready)
        waiting = [task for task in waiting if task.name not in known]
