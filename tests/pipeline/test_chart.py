"""The Helm chart, rendered by the real Helm: nothing defined twice, nothing lost, values refused in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.architecture.source_tree import ROOT

CHART = ROOT / "charts/stagecoach"
RENDERED = ROOT / "workflows/stagecoach_workflows/rendered"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
MINIMAL: dict[str, Any] = {"store": {"url": "s3://example-bucket/stagecoach"}, "requireArgo": False}

Object = dict[str, Any]


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Mapping[str, Any]) -> list[Object]:
    """Every object that an installation with these values makes."""
    chart().validate_schema(dict(values))
    texts = chart().render(dict(values), name="demo", namespace="ml")
    documents = [d for name, text in texts.items() if name.endswith(".yaml") for d in yaml.safe_load_all(text)]
    return [document for document in documents if document]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


def values_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


@cache
def ci(name: str) -> list[Object]:
    """The objects of one of the chart's ``ci/`` values files; tests only read them."""
    return render(values_of(CHART / f"ci/{name}-values.yaml"))


def shipped_recipes() -> list[str]:
    return [path.stem for path in sorted(RENDERED.glob("*.yaml"))]


def container_templates(template: Object) -> Iterator[Object]:
    return (t for t in template["spec"]["templates"] if "container" in t)


@pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.stem)
def test_lint_is_clean(path: Path) -> None:
    report = helm_python.lint(CHART, values_of(path), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


def test_the_objects_of_a_minimal_installation() -> None:
    """A kind that vanishes is a failure nobody sees before a cluster lacks it."""
    objects = ci("minimal")
    names = {kind: sorted(of_kind(objects, kind)) for kind in {o["kind"] for o in objects} - {"WorkflowTemplate"}}
    assert names == {
        "ConfigMap": ["stagecoach-artifacts", "stagecoach-semaphores", "stagecoach-store"],
        "NetworkPolicy": ["stagecoach-hub", "stagecoach-stages", "stagecoach-train"],
        "Pod": ["demo-doctor-cluster", "demo-doctor-store"],
        "Role": ["stagecoach-executor", "stagecoach-submitter"],
        "RoleBinding": ["stagecoach-executor", "stagecoach-submitter"],
        "Secret": ["stagecoach-executor.service-account-token"],
        "ServiceAccount": ["stagecoach", "stagecoach-executor", "stagecoach-submitter"],
    }


def test_the_objects_of_a_full_installation() -> None:
    kinds = {o["kind"] for o in ci("everything")} - {o["kind"] for o in ci("minimal")}
    assert kinds == {
        "ClusterRole",
        "ClusterRoleBinding",
        "CronWorkflow",
        "DaemonSet",
        "ExternalSecret",
        "LocalQueue",
        "PodMonitor",
        "PrometheusRule",
        "Sensor",
    }


def test_every_recipe_has_a_template_by_content_and_an_alias() -> None:
    templates = of_kind(ci("minimal"), "WorkflowTemplate")
    for recipe in shipped_recipes():
        alias = templates[f"stagecoach-{recipe}"]
        fixed = templates[alias["metadata"]["annotations"]["stagecoach/template"]]
        assert fixed["spec"] == alias["spec"]
        assert fixed["metadata"]["name"].startswith(f"stagecoach-{recipe}-")
        assert fixed["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert len(templates) == 2 * len(shipped_recipes())


def test_a_changed_value_gives_the_template_another_name() -> None:
    one = set(of_kind(render(MINIMAL), "WorkflowTemplate"))
    two = set(of_kind(render({**MINIMAL, "notify": {"enabled": False}}), "WorkflowTemplate"))
    aliases = {f"stagecoach-{recipe}" for recipe in shipped_recipes()}
    assert one & two == aliases


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_a_template_is_the_rendered_one_but_for_what_values_decide(recipe: str) -> None:
    """With values that say the same as the rendered file, the specs are equal: the chart defines nothing itself."""
    rendered = next(
        d for d in yaml.safe_load_all((RENDERED / f"{recipe}.yaml").read_text()) if d["kind"] == "WorkflowTemplate"
    )
    store = next(p["value"] for p in rendered["spec"]["arguments"]["parameters"] if p["name"] == "store")
    values = {"store": {"url": store}, "requireArgo": False}
    assert of_kind(render(values), "WorkflowTemplate")[f"stagecoach-{recipe}"]["spec"] == rendered["spec"]


def test_values_decide_store_images_and_secrets() -> None:
    template = of_kind(ci("everything"), "WorkflowTemplate")["stagecoach-tiny-cpu"]
    parameters = {p["name"]: p["value"] for p in template["spec"]["arguments"]["parameters"]}
    assert parameters["store"] == "s3://example-bucket/team/stagecoach"
    by_name = {t["name"]: t for t in container_templates(template)}
    image = by_name["pack"]["container"]["image"]
    assert image == "registry.example.org:5000/stagecoach/stagecoach-pack:0.1.0"
    environment = {e["name"]: e.get("value") for e in by_name["pack"]["container"]["env"]}
    assert environment["STAGECOACH_IMAGE_DIGEST"] == image
    assert by_name["pack"]["container"]["resources"]["limits"]["memory"] == "32Gi"
    assert "ephemeral-storage" in by_name["pack"]["container"]["resources"]["limits"]
    secrets = [s["secretRef"]["name"] for s in by_name["plan"]["container"]["envFrom"] if "secretRef" in s]
    assert secrets == ["stagecoach-store", "hub-token"]
    assert by_name["pack"]["volumes"][-1] == {"name": "store-ca", "secret": {"secretName": "corporate-ca"}}
    assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_the_stores_authority_and_key_reach_stages_and_argos_own_artifacts() -> None:
    """Argo's executor brings the small files to the same store: what a stage needs to know, it needs too."""
    maps = of_kind(ci("everything"), "ConfigMap")
    environment = maps["stagecoach-store"]["data"]
    key = "arn:aws:kms:eu-central-1:123456789012:key/abc"
    assert environment["STAGECOACH_S3_CA_BUNDLE"] == "/etc/stagecoach/ca/bundle.pem"
    assert environment["STAGECOACH_S3_SSE_KMS_KEY_ID"] == key
    assert (environment["HF_ENDPOINT"], environment["AWS_REGION"]) == ("https://hub.example.org", "eu-central-1")
    s3 = yaml.safe_load(maps["stagecoach-artifacts"]["data"]["default"])["s3"]
    assert s3["caSecret"] == {"name": "corporate-ca", "key": "bundle.pem"}
    assert s3["encryptionOptions"] == {"enableEncryption": True, "kmsKeyId": key}
    assert (s3["endpoint"], s3["insecure"]) == ("minio.example.org:9000", False)
    assert s3["accessKeySecret"] == {"name": "stagecoach-store", "key": "AWS_ACCESS_KEY_ID"}


def test_optional_objects_say_what_the_values_say() -> None:
    objects = ci("everything")
    external = of_kind(objects, "ExternalSecret")["stagecoach-store"]["spec"]
    assert external["secretStoreRef"] == {"kind": "ClusterSecretStore", "name": "vault"}
    assert external["dataFrom"] == [{"extract": {"key": "teams/ml/stagecoach"}}]
    assert of_kind(objects, "LocalQueue")["trainings"]["spec"] == {"clusterQueue": "gpus"}
    (monitor,) = of_kind(objects, "PodMonitor").values()
    assert monitor["spec"]["selector"]["matchLabels"] == {"app": "workflow-controller"}
    (trigger,) = of_kind(objects, "Sensor")["stagecoach"]["spec"]["triggers"]
    submitted = trigger["template"]["argoWorkflow"]["source"]["resource"]
    assert submitted["spec"] == {"workflowTemplateRef": {"name": "stagecoach-tiny-cpu"}}
    assert of_kind(objects, "ConfigMap")["stagecoach-semaphores"]["data"] == {"gpu-trainings": "2"}
    pulled = of_kind(objects, "DaemonSet")["stagecoach-prepull"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert pulled.startswith("ghcr.io/stagecoach/stagecoach-train@sha256:")


def test_the_exit_hook_reads_the_secret_that_the_values_name() -> None:
    template = of_kind(render({**MINIMAL, "notify": {"secret": "mine"}}), "WorkflowTemplate")["stagecoach-micro"]
    notify = next(t for t in container_templates(template) if t["name"] == "notify")
    assert [v["secret"]["secretName"] for v in notify["volumes"] if "secret" in v] == ["mine"]


def test_values_decide_where_train_runs() -> None:
    template = of_kind(ci("everything"), "WorkflowTemplate")["stagecoach-tiny-cpu"]
    train = next(t for t in container_templates(template) if t["name"] == "train")
    assert train["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    assert {"key": "spot", "operator": "Exists", "effect": "NoSchedule"} in train["tolerations"]
    assert train["priorityClassName"] == "training"
    assert train["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "trainings"
    others = [t for t in container_templates(template) if t["name"] != "train"]
    assert [t["name"] for t in others if "kueue.x-k8s.io/queue-name" in t["metadata"]["labels"]] == []


def test_the_hub_token_reaches_only_what_talks_to_the_hub() -> None:
    template = of_kind(ci("everything"), "WorkflowTemplate")["stagecoach-tiny-cpu"]
    seeing = {
        t["metadata"]["labels"]["stagecoach/stage"]
        for t in container_templates(template)
        if any(s.get("secretRef", {}).get("name") == "hub-token" for s in t["container"]["envFrom"])
    }
    assert seeing == {"pipeline", "download", "export"}


def test_argos_own_tags_survive() -> None:
    """Helm's templates use the same braces; a tag that Helm ate would be an empty argument."""
    template = of_kind(ci("everything"), "WorkflowTemplate")["stagecoach-tiny-cpu"]
    rendered = yaml.safe_load((RENDERED / "tiny-cpu.yaml").read_text().split("\n---")[0])
    assert str(template["spec"]).count("{{") == str(rendered["spec"]).count("{{")
    repository = yaml.safe_load(of_kind(ci("minimal"), "ConfigMap")["stagecoach-artifacts"]["data"]["default"])
    assert repository["s3"]["keyFormat"] == "argo/{{workflow.name}}/{{pod.name}}"


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object, list[Object]]]:
    """Name, pod-level spec and containers of everything that becomes a pod."""
    for o in objects:
        if o["kind"] == "Pod":
            yield o["metadata"]["name"], o["spec"], o["spec"]["containers"]
        if o["kind"] == "DaemonSet":
            spec = o["spec"]["template"]["spec"]
            yield o["metadata"]["name"], spec, spec["containers"]
        if o["kind"] == "WorkflowTemplate":
            for t in container_templates(o):
                yield f"{o['metadata']['name']}/{t['name']}", o["spec"], [t["container"]]


def test_every_pod_satisfies_pod_security_restricted() -> None:
    for name, spec, containers in pod_specs(ci("everything")):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert security["readOnlyRootFilesystem"] is True, name


def test_alerts_look_at_metrics_that_the_templates_define() -> None:
    """Prometheus says nothing about a name that does not exist: the alert would never fire."""
    (rule,) = of_kind(ci("everything"), "PrometheusRule").values()
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    asked = set(re.findall(r"argo_workflows_(stagecoach\w+)", str([alert["expr"] for alert in alerts])))
    template = of_kind(ci("everything"), "WorkflowTemplate")["stagecoach-tiny-cpu"]
    (runs,) = [m for m in template["spec"]["metrics"]["prometheus"] if "counter" in m]
    assert asked == {runs["name"]}
    used = set(re.findall(r"\$labels\.(\w+)", str(alerts))) - {"task"}
    assert used == {label["key"] for label in runs["labels"]}


def test_no_object_holds_a_secret() -> None:
    secrets = of_kind(ci("everything"), "Secret")
    accounts = ("stagecoach-executor", "stagecoach-jobset")
    assert set(secrets) == {f"{account}.service-account-token" for account in accounts}  # Kubernetes fills these
    assert [name for name, secret in secrets.items() if secret.get("data") or secret.get("stringData")] == []


def test_schedules_name_the_alias_and_are_in_utc() -> None:
    crons = of_kind(ci("everything"), "CronWorkflow")
    nightly = crons["stagecoach-nightly"]["spec"]
    assert nightly["workflowSpec"]["workflowTemplateRef"] == {"name": "stagecoach-tiny-cpu"}
    assert nightly["workflowSpec"]["arguments"] == {"parameters": [{"name": "set", "value": "train.seed=7"}]}
    assert (nightly["timezone"], nightly["concurrencyPolicy"]) == ("Etc/UTC", "Forbid")
    assert crons["stagecoach-weekly"]["spec"]["suspend"] is True


def test_only_the_enabled_recipes_are_installed() -> None:
    templates = of_kind(ci("static-keys"), "WorkflowTemplate")
    assert {name for name in templates if not name[-10:].isalnum() or name in ("stagecoach-micro",)} >= {
        "stagecoach-micro"
    }
    assert len(templates) == 4
    assert "stagecoach-tiny-cpu" not in templates


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"store": {"url": "/data"}}, "/store/url"),
        ({"store": {"url": "s3://bucket/"}}, "/store/url"),
        ({"nonsense": 1}, "nonsense"),
        ({"store": {**MINIMAL["store"], "endpointUrl": "http://user:secret@host"}}, "/store/endpointUrl"),
        ({"hub": {"endpoint": "https://user:secret@host"}}, "/hub/endpoint"),
        ({"networkPolicy": {"storeCidrs": []}}, "/networkPolicy/storeCidrs"),  # would mean: any address
        ({"train": {"maxConcurrent": 0}}, "/train/maxConcurrent"),
        ({"images": {"pullPolicy": "Always"}}, "/images/pullPolicy"),
        ({"images": {"pack": "pack@sha256:abc"}}, "/images/pack"),
        ({"cron": [{"name": "n", "recipe": "micro", "schedule": "@daily"}]}, "/cron/0/schedule"),
        ({"cron": [{"name": "n", "schedule": "0 2 * * *"}]}, "recipe"),
    ],
)
def test_the_schema_names_the_field(change: Object, words: str) -> None:
    with pytest.raises(helm_python.HelmError) as error:
        render({**MINIMAL, **change})
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cron": [{"name": "n", "recipe": "nope", "schedule": "0 2 * * *"}]}, 'cron "n" runs recipe "nope"'),
        ({"recipes": {"enabled": ["nope"]}}, 'recipes.enabled names "nope"'),
        ({"images": {"pack": "x/stagecoach-pack:latest"}}, "a tag that moves"),
        ({"kueue": {"createLocalQueue": True}}, "needs kueue.clusterQueue"),
        ({"credentials": {"externalSecret": {"enabled": True}}}, "needs secretStoreRef.name"),
        ({"credentials": {"existingSecret": "a", "externalSecret": {"enabled": True}}}, "exclude each other"),
        ({"prePull": {"enabled": True}}, "prePull.enabled needs images.train"),
        ({"requireArgo": True}, "has no Argo Workflows"),
    ],
)
def test_impossible_combinations_are_refused_in_words(change: Object, words: str) -> None:
    with pytest.raises(helm_python.HelmError) as error:
        render({**MINIMAL, **change})
    assert words in str(error.value)


def test_every_value_is_explained() -> None:
    """Each value has a sentence above it, or its section has one."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    sections = [n for n, line in enumerate(lines) if line and line[0].isalpha()]
    assert [
        lines[n] for n in sections if not any(x.lstrip().startswith("#") for x in lines[max(0, n - 1) : n + 2])
    ] == []
