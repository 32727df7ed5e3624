"""The documents are what Argo 3.7, 4.0 and 4.1 accept, what its ``Strict`` mode allows, and safe to run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.policy import RETRY_EXPRESSION
from stagecoach_workflows.recipes_shipped import load_recipe, shipped_names
from stagecoach_workflows.render import cron_document, template_document, workflow_document
from tests.pipeline.argo_schema import VERSIONS, problems

MULTI_NODE = ("train.nodes=2", "train.gpus=4", "train.layout.tensor_parallel=4", "train.layout.data_parallel=2")
SINCE_4_1 = {"pendingTimeout", "resourceClaims", "podResources", "executorPlugins", "addressingStyle", "initlessPod"}
GONE_IN_4_0 = {"schedule", "mutex", "semaphore", "podPriority"}
EVERYTHING = Deployment.model_validate(
    {
        "kueue_queue": "team",
        "image_pull_secrets": ["registry"],
        "node_selector": {"pool": "cpu"},
        "tolerations": [{"key": "spot"}],
        "retry_on_other_node": True,
    }
)


@pytest.fixture(scope="module", params=[*shipped_names(), "everything", "multi-node"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The template of each shipped recipe, one with every option of a deployment, and one on several nodes."""
    if request.param == "everything":
        return template_document(load_recipe("mistral-7b-4xa100"), EVERYTHING)
    if request.param == "multi-node":
        return template_document(load_recipe("mistral-7b-4xa100", MULTI_NODE), EVERYTHING)
    return template_document(load_recipe(request.param), Deployment())


def templates(document: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {template["name"]: template for template in document["spec"]["templates"] if kind in template}


def fields(value: Any) -> Iterator[str]:
    """Every field name of a document, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from fields(item)
    elif isinstance(value, list):
        for item in value:
            yield from fields(item)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_template_is_valid(document: dict[str, Any], version: str) -> None:
    assert problems(document, version) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_submissions_and_schedules_are_valid(version: str) -> None:
    workflow = workflow_document("stagecoach-micro-0123456789", parameters={"run": "r"}, labels={"a": "b"})
    assert problems(workflow, version) == []
    assert problems(cron_document(load_recipe("micro"), ["0 1 * * *"], {"set": ""}), version) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_finds_a_misspelt_field(version: str) -> None:
    """Else the tests above would prove nothing."""
    document = template_document(load_recipe("micro"), Deployment())
    document["spec"]["templates"][0]["retryStrategy"]["limits"] = "3"
    assert any("limits" in problem for problem in problems(document, version))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("template", "changes", "sentence"),
    [
        ("pipeline", {"timeout": "1h"}, "timeout cannot be applied to steps or dag templates"),
        ("pipeline", {"activeDeadlineSeconds": 5}, "activeDeadlineSeconds is only valid for leaf templates"),
        ("plan", {"suspend": {}}, "template must have at most one template type"),
    ],
)
def test_the_rules_in_cel_are_checked_too(version: str, template: str, changes: dict[str, Any], sentence: str) -> None:
    document = template_document(load_recipe("micro"), Deployment())
    next(one for one in document["spec"]["templates"] if one["name"] == template).update(changes)
    assert [problem.split(": ", 1)[1] for problem in problems(document, version)] == [sentence]


def test_a_template_uses_only_what_all_three_versions_have(document: dict[str, Any]) -> None:
    names = set(fields(document["spec"]))
    assert names & (SINCE_4_1 | GONE_IN_4_0) == set()


def test_every_container_names_its_command_image_and_resources(document: dict[str, Any]) -> None:
    for template in templates(document, "container").values():
        container = template["container"]
        assert container["command"][:2] == ["python", "-m"]
        assert container["image"].startswith("ghcr.io/stagecoach/stagecoach-")
        assert set(container["resources"]["limits"]) >= {"memory", "ephemeral-storage"}
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert template["timeout"]


def test_every_container_is_retried_by_the_one_rule(document: dict[str, Any]) -> None:
    for template in templates(document, "container").values():
        retry = template["retryStrategy"]
        assert (retry["expression"], retry["retryPolicy"]) == (RETRY_EXPRESSION, "Always")
        assert int(retry["limit"]) >= 2


def test_pods_pass_the_restricted_standard(document: dict[str, Any]) -> None:
    pod = document["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["runAsUser"] > 0
    for template in templates(document, "container").values():
        context = template["container"]["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert {"hostPath"} & set(fields(template)) == set()


def test_containers_get_no_token_of_the_cluster(document: dict[str, Any]) -> None:
    assert document["spec"]["automountServiceAccountToken"] is False
    assert document["spec"]["executor"]["serviceAccountName"] != document["spec"]["serviceAccountName"]


def test_everything_that_is_written_lies_on_a_declared_volume(document: dict[str, Any]) -> None:
    """The root is read-only, and Argo copies artifacts from the image's own layers twice."""
    for template in templates(document, "container").values():
        mounts = {mount["mountPath"] for mount in template["container"]["volumeMounts"]}
        outputs = template.get("outputs", {})
        paths = [artifact["path"] for artifact in outputs.get("artifacts", ())]
        paths += [parameter["valueFrom"]["path"] for parameter in outputs.get("parameters", ())]
        assert all(any(path.startswith(f"{mount}/") for mount in mounts) for path in paths)
        assert all(artifact["archive"] == {"none": {}} for artifact in outputs.get("artifacts", ()))
        assert {volume["name"] for volume in template["volumes"]} == {
            mount["name"] for mount in template["container"]["volumeMounts"]
        }


def test_every_output_parameter_has_a_default(document: dict[str, Any]) -> None:
    for template in templates(document, "container").values():
        for parameter in template.get("outputs", {}).get("parameters", ()):
            assert "default" in parameter["valueFrom"]


def test_secrets_are_named_and_only_the_hub_tasks_see_the_token(document: dict[str, Any]) -> None:
    for name, template in templates(document, "container").items():
        secrets = {source["secretRef"]["name"] for source in template["container"]["envFrom"] if "secretRef" in source}
        asks = name in ("plan", "export") or name.startswith("download-")
        assert ("stagecoach-hub" in secrets) == asks
        assert all(source[kind]["optional"] for source in template["container"]["envFrom"] for kind in source)


def test_metrics_are_never_labelled_by_run(document: dict[str, Any]) -> None:
    def labels(counted: dict[str, Any]) -> set[str]:
        return {label["key"] for metric in counted["metrics"]["prometheus"] for label in metric["labels"]}

    for template in templates(document, "container").values():
        assert labels(template) == {"task", "status"}
    assert labels(document["spec"]) == {"recipe", "status"}


def test_a_stages_manifest_and_numbers_are_artifacts(document: dict[str, Any]) -> None:
    for name, template in templates(document, "container").items():
        if name not in ("plan", "notify"):
            files = {artifact["path"].rsplit("/", 1)[1] for artifact in template["outputs"]["artifacts"]}
            assert files >= {"manifest.json", "metrics.json"}


def test_names_are_legal(document: dict[str, Any]) -> None:
    names = [template["name"] for template in document["spec"]["templates"]]
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in [*names, document["metadata"]["name"]])
    assert len(names) == len(set(names))


def test_the_whole_template_is_far_below_what_a_cluster_stores(document: dict[str, Any]) -> None:
    assert len(json.dumps(document)) < 200_000  # a Workflow object may have about 1 MiB


def train_template(*overrides: str, deployment: Deployment | None = None) -> dict[str, Any]:
    recipe = load_recipe("mistral-7b-4xa100", overrides)
    document = template_document(recipe, deployment or Deployment())
    return next(template for template in document["spec"]["templates"] if template["name"] == "train")


def test_train_asks_for_four_a100s_and_shared_memory() -> None:
    train = train_template()
    assert train["container"]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {"mountPath": "/dev/shm", "name": "shared-memory"} in train["container"]["volumeMounts"]
    terms = train["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert "NVIDIA-A100-SXM4-40GB" in terms[0]["matchExpressions"][0]["values"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in train["tolerations"]


def test_a_recipe_for_80_gb_keeps_off_smaller_cards() -> None:
    terms = train_template("train.gpu_memory_gib=75")["affinity"]["nodeAffinity"]
    values = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]["matchExpressions"][0][
        "values"
    ]
    assert values == ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"]


def test_train_has_time_to_save_and_locks_its_key() -> None:
    train = train_template()
    assert json.loads(train["podSpecPatch"]) == {"terminationGracePeriodSeconds": 180}
    assert train["synchronization"]["mutexes"] == [{"name": "stagecoach-train-{{inputs.parameters.key}}"}]
    assert train["synchronization"]["semaphores"][0]["configMapKeyRef"]["key"] == "gpu-trainings"


def test_only_train_waits_in_the_queue() -> None:
    document = template_document(load_recipe("mistral-7b-4xa100"), EVERYTHING)
    queued = [
        name
        for name, template in templates(document, "container").items()
        if "kueue.x-k8s.io/queue-name" in template["metadata"]["labels"]
    ]
    assert queued == ["train"]


def test_the_exit_hook_can_be_left_out() -> None:
    document = template_document(load_recipe("micro"), Deployment(notify=False))
    assert "hooks" not in document["spec"]
    assert "notify" not in templates(document, "container")


def test_a_training_on_two_nodes_is_a_jobset_that_a_retry_finds_again() -> None:
    train = train_template(*MULTI_NODE)
    manifest = yaml.safe_load(train["resource"]["manifest"])
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert (train["resource"]["action"], train["resource"]["setOwnerReference"]) == ("apply", True)
    assert manifest["metadata"]["name"] == "train-{{inputs.parameters.key}}"
    assert (job["completions"], job["completionMode"], job["backoffLimit"]) == (2, "Indexed", 0)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert environment["MASTER_ADDR"] == "train-{{inputs.parameters.key}}-train-0-0.train-{{inputs.parameters.key}}"
    # pods are called <jobset>-train-0-<index>-<5 random>: the key has 20 digits
    assert len("train-" + "0" * 20 + "-train-0-0-abcde") <= 63


def test_a_jobset_that_failed_is_not_tried_again() -> None:
    """Its pods were restarted by their exit codes already; what is tried again is the watching."""
    retry = train_template(*MULTI_NODE)["retryStrategy"]
    assert (retry["retryPolicy"], retry["limit"]) == ("Always", "3")
    assert retry["expression"] == "not (lastRetry.message contains 'failure condition')"


def test_a_manifest_can_be_written_where_the_executors_root_is_read_only() -> None:
    """Argo's init container writes it to /tmp before any other container of the pod starts."""
    document = template_document(load_recipe("mistral-7b-4xa100", MULTI_NODE), Deployment())
    patches = {name: json.loads(found["podSpecPatch"]) for name, found in templates(document, "resource").items()}
    accounts = {found["executor"]["serviceAccountName"] for found in templates(document, "resource").values()}
    assert accounts == {"stagecoach-jobset"}  # the executor applies the manifest; the workflow's own has no rights
    mounted = {"initContainers": [{"name": "init", "volumeMounts": [{"name": "tmp-dir-argo", "mountPath": "/tmp"}]}]}
    assert patches == {"train": mounted, "end-jobset": mounted}


@pytest.mark.parametrize("notify", [True, False])
def test_a_cancelled_run_leaves_no_jobset_behind(notify: bool) -> None:
    """The hook is that of the workflow; Argo runs those of a stopped task only if its result was read in time."""
    document = template_document(load_recipe("mistral-7b-4xa100", MULTI_NODE), Deployment(notify=notify))
    at_exit = document["spec"]["hooks"]["exit"]["template"]
    if notify:
        tasks = templates(document, "dag")[at_exit]["dag"]["tasks"]
        assert [task["name"] for task in tasks] == ["notify", "end-jobset"]
        at_exit = tasks[1]["template"]
    end = templates(document, "resource")[at_exit]["resource"]
    assert (end["action"], end["flags"]) == (
        "delete",
        ["jobsets.jobset.x-k8s.io", "--selector=stagecoach/workflow={{workflow.uid}}"],
    )
    manifest = yaml.safe_load(train_template(*MULTI_NODE)["resource"]["manifest"])
    assert manifest["metadata"]["labels"]["stagecoach/workflow"] == "{{workflow.uid}}"


def test_train_has_a_node_selector_of_its_own() -> None:
    """On several nodes too; without GPUs it needs no node that has some."""
    deployment = Deployment(node_selector={"pool": "cpu"}, train_node_selector={"pool": "train"})
    one = templates(template_document(load_recipe("micro"), deployment), "container")["train"]
    recipe = load_recipe("micro", ("train.nodes=2", "train.layout.data_parallel=2"))
    two = templates(template_document(recipe, deployment), "resource")["train"]["resource"]["manifest"]
    pod = yaml.safe_load(two)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert (one["nodeSelector"], pod["nodeSelector"]) == ({"pool": "train"}, {"pool": "train"})
    assert "nodeAffinity" not in pod["affinity"]
