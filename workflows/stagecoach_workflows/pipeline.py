"""The pipeline as an Argo WorkflowTemplate, in Hera: a plan, then a DAG of two arms that meet in train.

    plan -+-> download-model ----+-> convert -> shard -+
          +-> download-tokenizer +                     +-> train -> export
          +-> download-data-* ---+-> pack -------------+

The runners on one machine interpret this very object. The template holds everything that Argo's ``Strict`` mode forbids
a submission to say, and uses only what Argo 3.7, 4.0 and 4.1 have in common. This is the only module that knows Hera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from hera.workflows import (
    DAG,
    Container,
    Counter,
    EmptyDirVolume,
    Env,
    Histogram,
    Label,
    Metrics,
    NoneArchiveStrategy,
    Parameter,
    Resource,
    RetryStrategy,
    S3Artifact,
    SecretVolume,
    Task,
    WorkflowTemplate,
)
from hera.workflows import models as argo

from stagecoach.errors import ConfigError
from stagecoach_workflows import arguments, jobset
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.graph import TaskNode, task_nodes
from stagecoach_workflows.pod import (
    ARTIFACTS_PATH,
    NOTIFY_PATH,
    SCRATCH_PATH,
    container_security,
    environment_sources,
    gib,
    manifest_patch,
    node_affinity,
    pod_patch,
    pod_security,
    resources,
    tolerations,
)
from stagecoach_workflows.policy import (
    RETRY_EXPRESSION,
    Shape,
    TaskPolicy,
    argo_name,
    decision_parameter,
    resources_of,
    task_policy,
)

ENTRYPOINT = "pipeline"
_ARTIFACTS = {"plan": ("plan.json",), "pack": ("report.html",), "notify": ("report.html",)}
_STAGE_ARTIFACTS = ("manifest.json", "metrics.json")
_RETRY_CAP = "5m"
_EXIT = "end"


def build(shape: Shape, recipe_base64: str, deployment: Deployment, name: str) -> WorkflowTemplate:
    """Return the workflow template of one recipe.

    Args:
        shape: What the template depends on.
        recipe_base64: The recipe itself, as base64 of canonical JSON, the default of the parameter ``recipe``.
        deployment: What the cluster decides.
        name: Name of the template.

    Raises:
        ConfigError: Two data sources get the same name in Argo.
    """
    nodes = task_nodes(shape.data_sources)
    if len({argo_name(task) for task in nodes}) < len(nodes):
        raise ConfigError(f"data source names {', '.join(shape.data_sources)}: too alike for Argo; rename one")
    with _workflow(shape, recipe_base64, deployment, name) as workflow:
        templates = _Templates(shape, deployment)
        plan_template = templates.plan(list(nodes))
        stages = {task: templates.stage(node) for task, node in nodes.items()}
        at_exit: list[Container | Resource] = [templates.notify()] if deployment.notify else []
        if shape.nodes > 1:
            at_exit.append(templates.end_jobset())
        with DAG(name=ENTRYPOINT):
            plan = Task(name="plan", template=plan_template)
            _connect(plan, nodes, stages)
        if len(at_exit) > 1:
            with DAG(name=_EXIT, fail_fast=False):  # a message that cannot be sent keeps no pods alive, nor the reverse
                for template in at_exit:
                    Task(name=cast(str, template.name), template=template)
        if at_exit:
            workflow.hooks = {"exit": argo.LifecycleHook(template=_EXIT if len(at_exit) > 1 else at_exit[0].name)}
    return workflow


def _connect(plan: Task, nodes: Mapping[str, TaskNode], stages: Mapping[str, Container | Resource]) -> None:
    """Draw the diagram: each call makes a task that runs after the tasks it is given."""

    def task(name: str) -> Callable[..., Task]:
        return lambda *inputs: _task(nodes[name], stages[name], inputs or (plan,))

    convert, shard, pack, train, export = (task(name) for name in ("convert", "shard", "pack", "train", "export"))

    model = task("download-model")()
    tokenizer = task("download-tokenizer")()
    data = [task(name)() for name, node in nodes.items() if node.data_source is not None]

    native = convert(model, tokenizer)
    shards = shard(native)
    packed = pack(tokenizer, *data)
    trained = train(shards, packed, tokenizer)
    export(trained, native, tokenizer, packed)


def _task(node: TaskNode, template: Container | Resource, after: tuple[Task, ...]) -> Task:
    values = {"run-id": _plan_output("run-id"), "task": node.task}
    if node.kind.stage == "train":
        values["key"] = _plan_output("train-key")
    return Task(
        name=argo_name(node.task),
        template=template,
        arguments=cast(Any, values),
        depends=" && ".join(other.name for other in after),
        when=f"'{_plan_output(decision_parameter(node.task))}' == 'run'",
    )


def _plan_output(parameter: str) -> str:
    return f"{{{{tasks.plan.outputs.parameters.{parameter}}}}}"


def _workflow(shape: Shape, recipe_base64: str, deployment: Deployment, name: str) -> WorkflowTemplate:
    """Return the template's own fields: parameters, accounts, security, cleaning up."""
    labels = {"app.kubernetes.io/part-of": "stagecoach"}
    description = shape.description or f"Stagecoach fine-tuning pipeline of recipe {shape.recipe_name}"
    repository = deployment.artifact_repository
    return WorkflowTemplate(
        name=name,
        labels=labels,
        annotations={"workflows.argoproj.io/description": description, "stagecoach/recipe": shape.recipe_name},
        entrypoint=ENTRYPOINT,
        arguments=[
            Parameter(name="store", value=deployment.store, description="Where everything is kept"),
            Parameter(name="set", value="", description="Settings PATH=VALUE over the recipe, apart by spaces"),
            Parameter(name="run", value="", description="Run id; empty takes time and name of the workflow"),
            Parameter(name="commit", value="", description="owner/repository@sha whose status on GitHub the run sets"),
            Parameter(name="runner", value="argo", description="What runs the stages; leave it"),
            Parameter(name="recipe", value=recipe_base64, description="The recipe, base64 of canonical JSON"),
        ],
        service_account_name=deployment.service_account,
        automount_service_account_token=False,
        executor=argo.ExecutorConfig(service_account_name=deployment.executor_service_account),
        security_context=argo.PodSecurityContext(**pod_security(deployment)),
        image_pull_secrets=[argo.LocalObjectReference(name=secret) for secret in deployment.image_pull_secrets] or None,
        tolerations=[argo.Toleration(**taint) for taint in tolerations(deployment.tolerations)] or None,
        node_selector=deployment.node_selector or None,
        artifact_repository_ref=argo.ArtifactRepositoryRef(config_map=repository, key="default")
        if repository
        else None,
        workflow_metadata=argo.WorkflowMetadata(labels={**labels, "stagecoach/recipe": _label(shape.recipe_name)}),
        pod_metadata=argo.Metadata(labels=labels),
        pod_gc=argo.PodGC(strategy="OnPodSuccess", delete_delay_duration="10m"),
        ttl_strategy=argo.TTLStrategy(seconds_after_completion=deployment.keep_days * 24 * 3600),
        metrics=_metrics("run", "recipe", _label(shape.recipe_name), "workflow."),
    )


class _Templates:
    """Makes the templates that tasks run: one container each, the same but for image, size and outputs."""

    def __init__(self, shape: Shape, deployment: Deployment) -> None:
        self._shape = shape
        self._deployment = deployment

    def plan(self, tasks: list[str]) -> Container:
        names = ["run-id", "train-key", *(decision_parameter(task) for task in tasks)]
        return self._container(
            "plan",
            image="pipeline",
            command=["python", "-m", "stagecoach_workflows.plan"],
            args=list(arguments.PLAN),
            outputs=[_output(name, "run" if name.startswith("decision-") else "") for name in names],
            # the sentence of a refused recipe is then the message of the workflow's node
            termination_message_policy="FallbackToLogsOnError",
        )

    def stage(self, node: TaskNode) -> Container | Resource:
        policy = self._policy(node.kind.name)
        stage = node.kind.stage
        command = ["python", "-m", f"stagecoach_{stage}"]
        args = list(arguments.STAGE)
        inputs = [Parameter(name="run-id"), Parameter(name="task")]
        options: dict[str, Any] = {}
        if stage == "train":
            inputs.append(Parameter(name="key"))
            options = self._train_options()
        if stage == "train" and self._shape.nodes > 1:
            manifest = jobset.manifest(self._shape, self._deployment, policy, command, args)
            return self._multi_node(argo_name(node.task), inputs, manifest, policy, options["synchronization"])
        return self._container(
            argo_name(node.task), image=stage, command=command, args=args, inputs=inputs, kind=node.kind.name, **options
        )

    def end_jobset(self) -> Resource:
        """Delete the JobSet when its run ends, however it ends: a cancelled run leaves no training behind."""
        # A hook of the task would not do: Argo runs none for a task that was stopped before its result was read.
        return Resource(
            name="end-jobset",
            action="delete",
            flags=[jobset.KIND, f"--selector={jobset.WORKFLOW_LABEL}={jobset.WORKFLOW}"],
            executor=argo.ExecutorConfig(service_account_name=self._deployment.jobset_service_account),
            retry_strategy=RetryStrategy(limit="3", retry_policy="Always", backoff=_backoff(2)),
            pod_spec_patch=manifest_patch(),
        )

    def notify(self) -> Container:
        return self._container(
            "notify",
            image="pipeline",
            command=["python", "-m", "stagecoach_workflows.notify"],
            args=list(arguments.NOTIFY),
            extra_volumes=[
                SecretVolume(
                    name="notify", secret_name=self._deployment.notify_secret, mount_path=NOTIFY_PATH, optional=True
                )
            ],
        )

    def _policy(self, kind: str) -> TaskPolicy:
        return resources_of(task_policy(kind, self._shape), kind, self._deployment)

    def _train_options(self) -> dict[str, Any]:
        deployment, with_gpus = self._deployment, self._shape.gpus > 0
        semaphores = None
        if with_gpus and deployment.semaphore:
            selector = argo.ConfigMapKeySelector(name=deployment.semaphore, key="gpu-trainings")
            semaphores = [argo.SemaphoreRef(config_map_key_ref=selector)]
        options: dict[str, Any] = {
            # two runs that want the same training: the second one waits here, then finds it done
            "synchronization": argo.Synchronization(
                mutexes=[argo.Mutex(name="stagecoach-train-{{inputs.parameters.key}}")], semaphores=semaphores
            )
        }
        if deployment.kueue_queue:
            options["extra_labels"] = {"kueue.x-k8s.io/queue-name": deployment.kueue_queue}
        if with_gpus:
            affinity = node_affinity(deployment, self._shape)
            options["affinity"] = argo.Affinity(**affinity) if affinity else None
            taints = (*deployment.tolerations, *deployment.gpu_tolerations)
            options["tolerations"] = [argo.Toleration(**taint) for taint in tolerations(taints)]
        if deployment.train_node_selector:
            options["node_selector"] = deployment.train_node_selector
        return options

    def _multi_node(
        self,
        name: str,
        inputs: list[Parameter],
        manifest: str,
        policy: TaskPolicy,
        synchronization: argo.Synchronization,
    ) -> Resource:
        """Hand a training on several nodes to a JobSet; its name is the training's key, so a retry finds it again."""
        return Resource(
            name=name,
            inputs=cast(Any, inputs),
            action="apply",
            manifest=manifest,
            set_owner_reference=True,
            success_condition="status.terminalState == Completed",
            failure_condition="status.terminalState == Failed",
            executor=argo.ExecutorConfig(service_account_name=self._deployment.jobset_service_account),
            retry_strategy=RetryStrategy(
                limit="3", retry_policy="Always", expression=jobset.RETRY, backoff=_backoff(90)
            ),
            timeout=policy.timeout,
            synchronization=synchronization,
            pod_spec_patch=manifest_patch(),
        )

    def _container(
        self,
        name: str,
        *,
        image: str,
        command: list[str],
        args: list[str],
        kind: str | None = None,
        inputs: list[Parameter] | None = None,
        outputs: list[Parameter] | None = None,
        extra_labels: Mapping[str, str] | None = None,
        extra_volumes: list[SecretVolume] | None = None,
        **options: Any,
    ) -> Container:
        policy, deployment = self._policy(kind or name), self._deployment
        artifacts = self._artifacts(name, kind or name)
        return Container(
            name=name,
            image=deployment.image(image),
            image_pull_policy=deployment.image_pull_policy,
            command=command,
            args=args,
            inputs=cast(Any, inputs or []),
            outputs=cast(Any, [*(outputs or []), *artifacts]),
            env=[
                Env(name="STAGECOACH_ARTIFACTS", value=ARTIFACTS_PATH),
                Env(name="STAGECOACH_IMAGE_DIGEST", value=deployment.image(image)),
            ],
            env_from=[argo.EnvFromSource(**source) for source in environment_sources(deployment, name, image)],
            labels={"stagecoach/stage": image, **(extra_labels or {})},
            resources=argo.ResourceRequirements(**cast(Any, resources(policy))),
            volumes=cast(Any, [*_volumes(policy), *(extra_volumes or [])]),
            retry_strategy=self._retry(policy, other_node=kind == "train" and deployment.retry_on_other_node),
            timeout=policy.timeout,
            security_context=argo.SecurityContext(**container_security()),
            pod_spec_patch=pod_patch(policy),
            metrics=_metrics("task", "task", kind or name),
            **options,
        )

    def _retry(self, policy: TaskPolicy, *, other_node: bool) -> RetryStrategy:
        return RetryStrategy(
            limit=str(policy.retries),
            retry_policy="Always",
            expression=RETRY_EXPRESSION,
            backoff=_backoff(policy.backoff_seconds),
            affinity=argo.RetryAffinity(node_anti_affinity=argo.RetryNodeAntiAffinity()) if other_node else None,
        )

    def _artifacts(self, name: str, kind: str) -> list[S3Artifact]:
        """Small files for people, from a declared volume and as they are, so that Argo copies and packs nothing."""
        if self._deployment.artifact_repository is None:
            return []
        files = (*(() if kind in ("plan", "notify") else _STAGE_ARTIFACTS), *_ARTIFACTS.get(kind, ()))
        return [
            S3Artifact(
                name=file.replace(".", "-"),
                path=f"{ARTIFACTS_PATH}/{file}",
                key=f"argo/{{{{workflow.name}}}}/{name}/{file}",
                archive=NoneArchiveStrategy(),
                optional=True,
            )
            for file in files
        ]


def _backoff(seconds: int) -> argo.Backoff:
    return argo.Backoff(duration=str(seconds), factor=cast(Any, 2), cap=_RETRY_CAP)


def _output(name: str, default: str) -> Parameter:
    return Parameter(name=name, value_from=argo.ValueFrom(path=f"{ARTIFACTS_PATH}/{name}", default=default))


def _volumes(policy: TaskPolicy) -> list[EmptyDirVolume]:
    """Everything that is written lies on these, as the image itself is read-only."""
    asked = policy.resources
    volumes = [
        EmptyDirVolume(name="scratch", mount_path=SCRATCH_PATH, size_limit=cast(Any, gib(asked.scratch_gib))),
        EmptyDirVolume(name="artifacts", mount_path=ARTIFACTS_PATH, size_limit=cast(Any, "256Mi")),
    ]
    if asked.shared_memory_gib:
        size = cast(Any, gib(asked.shared_memory_gib))
        volumes.append(EmptyDirVolume(name="shared-memory", mount_path="/dev/shm", medium="Memory", size_limit=size))
    return volumes


def _metrics(what: str, by: str, value: str, scope: str = "") -> Metrics:
    """Count and time runs or tasks; never labelled by run, as Argo keeps a series for each set of labels."""
    labels = [Label(key=by, value=value)]
    metrics: list[Any] = [
        Counter(
            name=f"stagecoach_{what}s_total",
            help=f"{what.capitalize()}s that ended, by {by} and status",
            labels=[*labels, Label(key="status", value=f"{{{{{scope}status}}}}")],
            value="1",
        ),
        Histogram(
            name=f"stagecoach_{what}_seconds",
            help=f"Duration of {what}s, by {by}",
            labels=labels,
            value=f"{{{{{scope}duration}}}}",
            buckets=[10, 60, 300, 1_800, 3_600, 14_400, 43_200, 172_800],
        ),
    ]
    return Metrics(metrics=metrics)


def _label(text: str) -> str:
    return text[:63].strip("-._")
