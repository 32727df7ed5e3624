"""What the workflow asks of a cluster for each task, and when a failed task is tried again; plain data, no Hera.

A workflow template is made from a ``Shape`` and a ``Deployment`` alone. So a setting that leaves the shape as it is may
be given when a run is submitted, and any other needs a template of its own.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import RETRYABLE_EXIT_CODES
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import SeedSource
from stagecoach_workflows.deployment import Deployment

_UNSAID_PARAMETERS = 7_250_000_000
_SMALL_GIB = 1.0

_KILLED_EXIT_CODES = (137, 143)  # SIGKILL (not by the memory limit, see below) and SIGTERM before a stage can save
_POD_DELETED_EXIT_CODE = -1  # Argo knows no exit code of a pod that was deleted: the node is in status Error
_OUT_OF_MEMORY_MESSAGE = r"^(main: )?OOMKilled"
_EVICTED_MESSAGE = (
    r"^(pod deleted|Pod was terminated in response to imminent node shutdown|The node was low on resource"
    r"|The node had condition|Preempted|Evicted|Pod was evicted)"
)

RETRY_EXIT_CODES: tuple[int, ...] = (*RETRYABLE_EXIT_CODES, *_KILLED_EXIT_CODES)
"""Exit codes after which the same command is run again, by Argo and by the runners on one machine alike."""

RETRY_EXPRESSION = (
    f"!(lastRetry.message matches '{_OUT_OF_MEMORY_MESSAGE}')"
    f" && (asInt(lastRetry.exitCode) in [{', '.join(str(code) for code in RETRY_EXIT_CODES)}]"
    f" || (lastRetry.status == 'Error' && asInt(lastRetry.exitCode) == {_POD_DELETED_EXIT_CODE})"
    f" || lastRetry.message matches '{_EVICTED_MESSAGE}')"
)
"""The same rule as Argo evaluates it; evictions and deleted pods are known by status and message only. A process that
was killed for its memory would be killed again, so 137 with that message is permanent."""

GPU_RESOURCE = "nvidia.com/gpu"


def is_retryable(exit_code: int) -> bool:
    """Say whether a stage that ended with this exit code is tried again by a runner on one machine."""
    return exit_code in RETRY_EXIT_CODES


def argo_name(task: str) -> str:
    """Return the name of a task in the workflow: Argo allows letters, digits and ``-`` only.

    ``-`` stands for itself; other characters become ``-`` and their code, so that different names stay different.
    """
    return re.sub(r"[^a-z0-9-]", lambda found: f"-x{ord(found.group()):02x}-", task)


def decision_parameter(task: str) -> str:
    """Return the name of the output parameter of the plan that says ``run`` or ``skip`` for a task."""
    return f"decision-{argo_name(task)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Everything about a recipe that its workflow template depends on, beside the recipe's own text."""

    recipe_name: str
    description: str
    data_sources: tuple[str, ...]
    """Names, in order; one download task each."""
    num_parameters: int
    """Parameters of the base model."""
    ships_its_data: bool
    """All conversations come with Stagecoach, so there are few."""
    nodes: int
    gpus: int
    """GPUs on each node."""
    ranks: int
    """Rank processes over all nodes."""
    threads_per_rank: int
    gpu_memory_gib: float | None
    """Smallest GPU memory that the recipe was written for; None takes any GPU of the deployment."""

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        """Return the shape of a recipe."""
        return cls(
            recipe_name=recipe.name,
            description=recipe.description,
            data_sources=tuple(source.name for source in recipe.data.sources),
            num_parameters=_num_parameters(recipe),
            ships_its_data=all(source.source.kind == "embedded" for source in recipe.data.sources),
            nodes=recipe.train.nodes,
            gpus=recipe.train.gpus,
            ranks=recipe.train.layout.world_size,
            threads_per_rank=recipe.train.threads_per_rank,
            gpu_memory_gib=recipe.train.gpu_memory_gib,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    @property
    def model_gib(self) -> float:
        """Size of the base model's weights in 16 bit."""
        return 2 * self.num_parameters / 2**30


def _num_parameters(recipe: Recipe) -> int:
    source, said = recipe.model.source, recipe.model.num_parameters
    if said is None and isinstance(source, SeedSource):
        return seed_model(source).num_parameters
    return said or _UNSAID_PARAMETERS


def seed_model(seed: SeedSource) -> ModelSpec:
    """Return the dimensions of a model that is made from a seed."""
    return ModelSpec(
        family="mistral",
        num_layers=seed.num_layers,
        hidden_size=seed.hidden_size,
        intermediate_size=seed.intermediate_size,
        num_heads=seed.num_heads,
        num_kv_heads=seed.num_kv_heads,
        head_dim=seed.head_dim,
        vocab_size=seed.vocab_size,
        norm_eps=seed.norm_eps,
        rope_theta=seed.rope_theta,
        sliding_window=seed.sliding_window,
        max_position_embeddings=seed.max_position_embeddings,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What the pod of one task asks for."""

    cpu: float
    """Cores; a request without a limit, as throttling only makes a stage slower."""
    memory_gib: float
    """Request and limit."""
    scratch_gib: float
    """Size limit of the scratch volume, and the request and limit of ephemeral storage with 1 GiB for logs."""
    gpus: int = 0
    shared_memory_gib: float = 0.0
    """Size of /dev/shm, which counts against the memory; 0 leaves the runtime's own 64 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPolicy:
    """How one kind of task is run and how often it is tried."""

    resources: Resources
    timeout: str
    """Longest time of one attempt, waiting for a node included."""
    retries: int
    """Attempts after the first."""
    backoff_seconds: int
    """Wait before the first retry; doubled for each further one, up to five minutes."""
    grace_seconds: int
    """Time between SIGTERM and SIGKILL."""


def task_policy(kind: str, shape: Shape) -> TaskPolicy:
    """Return the policy of one kind of task.

    Args:
        kind: A row of ``stagecoach.stages.TASKS``, ``plan`` or ``notify``.
        shape: The recipe's shape.
    """
    return TaskPolicy(
        resources=_resources(kind, shape),
        timeout="72h" if kind == "train" else "30m" if kind in ("plan", "notify") else "6h",
        retries={"train": 12, "notify": 2}.get(kind, 5),
        backoff_seconds=2 if kind in ("plan", "notify") else 10,
        grace_seconds=180 if kind == "train" else 30,
    )


def _resources(kind: str, shape: Shape) -> Resources:
    """One tensor at a time is held in memory; what is copied to scratch decides the disk."""
    size_gib, few_rows = shape.model_gib, shape.ships_its_data
    small = size_gib < _SMALL_GIB
    if kind in ("plan", "notify"):
        return Resources(cpu=0.1, memory_gib=0.5, scratch_gib=1)
    if kind == "train":
        return _train_resources(shape)
    if kind in ("convert", "shard", "export"):
        # the input lies on scratch: convert's may be fp32, twice the 16-bit weights; export's has no moments, but masters
        times = 4 if kind == "export" else 2.5
        return Resources(
            cpu=0.25 if small else 2, memory_gib=1 if small else 8, scratch_gib=_round_up(2 + times * size_gib)
        )
    if kind == "download-model":
        return Resources(
            cpu=0.25 if small else 1, memory_gib=1 if small else 2, scratch_gib=_round_up(2 + 1.2 * size_gib)
        )
    if kind == "pack":
        return Resources(
            cpu=0.5 if few_rows else 4, memory_gib=1 if few_rows else 16, scratch_gib=2 if few_rows else 40
        )
    return Resources(cpu=0.25, memory_gib=1, scratch_gib=2 if few_rows else 20)


def _train_resources(shape: Shape) -> Resources:
    """A checkpoint has fp32 masters and two moments: six times the 16-bit weights, once in memory, once on scratch."""
    ranks, size_gib = shape.ranks // shape.nodes, shape.model_gib
    state_gib = 6 * size_gib / shape.nodes
    if shape.gpus:
        memory_gib = _round_up(24 + 4 * ranks + 1.25 * state_gib)
        return Resources(
            cpu=8 * shape.gpus,
            memory_gib=memory_gib,
            scratch_gib=_round_up(20 + 2 * state_gib + size_gib),
            gpus=shape.gpus,
            shared_memory_gib=16,
        )
    return Resources(
        cpu=ranks * shape.threads_per_rank,
        memory_gib=_round_up(1 + 1.5 * ranks + 4 * state_gib),
        scratch_gib=_round_up(2 + 3 * state_gib),
        shared_memory_gib=0.25,
    )


def _round_up(gib: float) -> int:
    return int(-(-gib // 1))


def resources_of(policy: TaskPolicy, kind: str, deployment: Deployment) -> TaskPolicy:
    """Return the policy with the deployment's changes to the resources of this kind of task."""
    change = deployment.resources.get(kind)
    if change is None:
        return policy
    return replace(policy, resources=replace(policy.resources, **change.model_dump(exclude_none=True)))
