"""What a cluster decides and a recipe does not: images, accounts, names of secrets, where GPUs are.

Nothing here enters a content key. ``stagecoach render`` and ``submit`` read it from a YAML file; the chart's values
have the same names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, ValidationInfo, field_validator

from stagecoach.errors import ConfigError
from stagecoach.stages import STAGES, TASKS

IMAGES: tuple[str, ...] = (*STAGES, "pipeline")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ResourceChange(_Part):
    """Other resources for one kind of task; what is left out stays as it is."""

    cpu: PositiveFloat | None = None
    """Cores asked for."""
    memory_gib: PositiveFloat | None = None
    """Memory, request and limit."""
    scratch_gib: PositiveFloat | None = None
    """Scratch volume."""
    shared_memory_gib: PositiveFloat | None = None
    """Size of /dev/shm."""


class Toleration(_Part):
    """A taint of nodes that pods may be put on."""

    key: str
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists: whatever its value."""
    value: str | None = None
    """Value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = "NoSchedule"
    """Effect; None is every effect."""


class Deployment(_Part):
    """Everything about a cluster that a workflow template holds."""

    registry: str = "ghcr.io/stagecoach"
    """Where the images are, without a final slash."""
    tag: str = "0.1.0"
    """Tag of images without a digest."""
    images: dict[str, str] = Field(default_factory=dict)
    """Image of a stage, or of ``pipeline``: a digest (``sha256:..``) or a whole reference; ``--images`` fills it."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When images are fetched."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with the registry's credentials."""
    store: str = "s3://stagecoach"
    """Where everything is kept; the default of the workflow's parameter ``store``."""
    service_account: str = "stagecoach"
    """Account of the pods; carries the cloud identity, has no rights in the cluster and no token in main containers."""
    executor_service_account: str = "stagecoach-executor"
    """Account of Argo's own container, which reports results; needs ``create, patch workflowtaskresults``."""
    jobset_service_account: str = "stagecoach-jobset"
    """Account that makes and watches JobSets, for trainings on several nodes only."""
    store_secret: str = "stagecoach-store"
    """Secret whose keys become environment variables of every task (AWS_ACCESS_KEY_ID ..); may be absent."""
    store_config: str = "stagecoach-store"
    """ConfigMap whose keys become environment variables too (STAGECOACH_S3_ENDPOINT_URL ..); may be absent."""
    hub_secret: str = "stagecoach-hub"
    """Secret with HF_TOKEN for plan, download and export; may be absent."""
    notify_secret: str = "stagecoach-notify"
    """Secret with the addresses that the exit hook tells; ``notify.py`` lists its keys; may be absent."""
    notify: bool = True
    """Run the exit hook; it costs a small pod at the end of each run."""
    artifact_repository: str | None = "stagecoach-artifacts"
    """ConfigMap with the artifact repository, under key ``default``; None keeps no small artifacts."""
    semaphore: str | None = "stagecoach-semaphores"
    """ConfigMap whose key ``gpu-trainings`` says how many trainings with GPUs may run at once; None does not limit."""
    kueue_queue: str | None = None
    """Kueue LocalQueue of train pods; None queues nothing."""
    gpu_products: tuple[str, ...] = (
        "NVIDIA-A100-SXM4-40GB",
        "NVIDIA-A100-PCIE-40GB",
        "NVIDIA-A100-SXM4-80GB",
        "NVIDIA-A100-80GB-PCIe",
    )
    """Values of the node label ``nvidia.com/gpu.product`` that trainings may use; none of them means any node."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes for every pod."""
    train_node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes for train, in place of ``node_selector``."""
    gpu_tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)
    """Taints of GPU nodes."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that every pod may be put on."""
    retry_on_other_node: bool = False
    """After a failure of train take another node; needs a pool with spare ones."""
    resources: dict[str, ResourceChange] = Field(default_factory=dict)
    """Other resources, by kind of task: ``train``, ``pack``, ``download-model``, .."""
    user_id: int = Field(default=65532, ge=1)
    """User and group that every container runs as."""
    keep_days: int = Field(default=7, ge=1)
    """Days after which a finished workflow object is deleted; what it made stays in the store."""

    @field_validator("images", "resources")
    @classmethod
    def _known(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Refuse a misspelt name, which would change nothing and say nothing."""
        known = IMAGES if info.field_name == "images" else (*TASKS, "plan", "notify")
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"expected names of {', '.join(known)}, got {', '.join(unknown)[:120]}")
        return values

    def image(self, name: str) -> str:
        """Return the whole reference of an image."""
        if name not in IMAGES:
            raise ConfigError(f"image {name!r}: expected one of {', '.join(IMAGES)}")
        known = self.images.get(name)
        if known is None:
            return f"{self.registry}/stagecoach-{name}:{self.tag}"
        return f"{self.registry}/stagecoach-{name}@{known}" if known.startswith("sha256:") else known


def load_deployment(file: Path | None, images_file: Path | None = None) -> Deployment:
    """Return the deployment in a YAML file, with the images of a lock file (JSON: image -> digest) laid over it.

    Raises:
        ConfigError: One line for each problem: file, field, what was expected.
    """
    values = _mapping(file) if file is not None else {}
    if images_file is not None:
        values = {**values, "images": {**values.get("images", {}), **_mapping(images_file)}}
    try:
        return Deployment.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{file or images_file}: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def _mapping(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file}: expected a readable YAML or JSON file, got: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a mapping, got {type(values).__name__}")
    return values
