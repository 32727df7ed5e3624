"""Runs as people use them: from the alias, again, with a changed field, with a bad one, on a schedule, two at once."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stagecoach.paths import plan_key
from tests.cluster.client import Cluster, Object, seconds_between
from tests.micro_run import TASKS

pytestmark = pytest.mark.cluster

ALL_TASKS = set(TASKS)
ASK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": question}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**ids, max_new_tokens=200, do_sample=False)[0, ids["input_ids"].shape[1] :]
text, stopped = tokenizer.decode(answer, skip_special_tokens=True), int(answer[-1]) == tokenizer.eos_token_id
print(json.dumps({"text": text, "stopped": stopped}))
"""


def test_a_run_from_the_alias_succeeds_and_the_same_again_starts_no_stage(cluster: Cluster, store_url: str) -> None:
    first = cluster.submit("micro", store_url)
    assert cluster.wait(first) == "Succeeded", cluster.nodes(first)
    assert cluster.ran(first) == ALL_TASKS
    second = cluster.submit("micro", store_url)
    assert cluster.wait(second) == "Succeeded"
    assert cluster.ran(second) == set()


def test_the_same_again_ends_ten_seconds_after_its_plan_starts(
    cluster: Cluster, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the exit hook, which is a pod of its own after the end."""
    with cluster.variant("micro", lambda spec: spec.pop("hooks")) as recipe:
        assert cluster.wait(cluster.submit(recipe, store_url)) == "Succeeded"
        again = cluster.submit(recipe, store_url)
        assert cluster.wait(again) == "Succeeded"
    assert cluster.ran(again) == set()
    (plan,) = cluster.attempts(again, "plan")
    pod, workflow = cluster.get("pod", plan.pod)["status"], cluster.workflow(again)["status"]
    seconds = seconds_between(pod["startTime"], workflow["finishedAt"])
    whole_seconds = seconds_between(workflow["startedAt"], workflow["finishedAt"])
    with capsys.disabled():
        print(f"\nthe same again: {seconds:.0f} s from the start of the plan's pod, {whole_seconds:.0f} s in all")
    assert seconds <= 10


def test_train_is_placed_by_its_gpu_request_and_the_rest_elsewhere(cluster: Cluster, store_url: str) -> None:
    """The pods are gone soon after they succeed, so they are watched while they run."""
    name = cluster.submit("micro", store_url)
    train = cluster.get("pod", cluster.running_pod(name, "train"))
    assert train["spec"]["nodeName"] == "gpu1"
    main = next(c for c in train["spec"]["containers"] if c["name"] == "main")
    assert main["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert cluster.wait(name) == "Succeeded"


def test_a_changed_pack_field_runs_pack_train_and_export_only(cluster: Cluster, store_url: str) -> None:
    assert cluster.wait(cluster.submit("micro", store_url)) == "Succeeded"
    changed = cluster.submit("micro", store_url, set="pack.seed=1")
    assert cluster.wait(changed) == "Succeeded"
    assert cluster.ran(changed) == {"pack", "train", "export"}


def test_two_submits_at_once_train_once(cluster: Cluster, store_url: str) -> None:
    names = [cluster.submit("micro", store_url) for _ in range(2)]
    assert [cluster.wait(name) for name in names] == ["Succeeded", "Succeeded"]
    attempts = [o.key for o in cluster.store(store_url).list("trained/") if "/attempts/" in o.key]
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train.nonsense=1", "train.nonsense"),
        ("train.gpus=1", "template"),
    ],
)
def test_a_bad_setting_fails_in_the_plan_with_the_sentence(
    cluster: Cluster, store_url: str, setting: str, sentence: str
) -> None:
    name = cluster.submit("micro", store_url, set=setting)
    assert cluster.wait(name, 120) == "Failed"
    plan = cluster.attempts(name, "plan")
    assert len(plan) == 1
    assert plan[0].exit_code == "78"
    assert sentence in plan[0].message
    assert cluster.ran(name) == set()


@pytest.mark.parametrize("text", ["$(touch /tmp/x)", "`id`", "{{workflow.name}}", '"; exit 1; "', "a: [1, 2}\n- b"])
def test_a_hostile_parameter_is_text(cluster: Cluster, store_url: str, text: str) -> None:
    """It reaches the plan as one argument and is refused as a setting; nothing runs it."""
    name = cluster.submit("micro", store_url, set=text)
    assert cluster.wait(name, 120) in ("Failed", "Error")
    assert cluster.ran(name) == set()


def test_progress_is_seen_while_training(cluster: Cluster, store_url: str) -> None:
    name = cluster.submit("micro", store_url, set="train.steps=1500 train.save_every_steps=500")

    def between() -> str | None:
        seen = [node.progress for node in cluster.attempts(name, "train") if node.phase == "Running"]
        done, total = map(int, (seen[-1] if seen else "0/1").split("/"))
        return seen[-1] if 0 < done < total else None

    assert cluster.until(between, "progress of train", 300)
    assert cluster.wait(name) == "Succeeded"


def test_the_report_is_an_artifact_that_people_can_read(cluster: Cluster, store_url: str) -> None:
    name = cluster.submit("micro", store_url)
    assert cluster.wait(name) == "Succeeded"
    nodes = cluster.workflow(name)["status"]["nodes"].values()
    pack = next(n for n in nodes if n["displayName"].startswith("pack(") and n["type"] == "Pod")
    artifact = next(a for a in pack["outputs"]["artifacts"] if a["name"] == "report-html")
    bucket = cluster.store(f"s3://{store_url.split('/')[2]}")
    text = bucket.get(artifact["s3"]["key"]).decode()
    assert text.lstrip().lower().startswith("<!doctype html>")


def test_every_pod_is_restricted_and_holds_no_api_token(cluster: Cluster, store_url: str) -> None:
    namespace = cluster.get("namespace", cluster.namespace)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    name = cluster.submit("micro", store_url)
    pod = cluster.get("pod", cluster.running_pod(name, "train"))
    main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
    mounts = [mount["mountPath"] for mount in main["volumeMounts"]]
    assert not [path for path in mounts if "serviceaccount" in path]
    assert "testsecret" not in json.dumps(pod)
    assert cluster.wait(name) == "Succeeded"


def test_a_schedule_fires_and_skips_unchanged_work(cluster: Cluster, store_url: str) -> None:
    assert cluster.wait(cluster.submit("micro", store_url)) == "Succeeded"
    cron: Object = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "CronWorkflow",
        "metadata": {"name": "every-minute"},
        "spec": {
            "schedules": ["* * * * *"],
            "timezone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "workflowSpec": {
                "workflowTemplateRef": {"name": "stagecoach-micro"},
                "arguments": {"parameters": [{"name": "store", "value": store_url}]},
            },
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(cron))
    try:

        def fired() -> str | None:
            found = cluster.get("workflows", "-l", "workflows.argoproj.io/cron-workflow=every-minute")["items"]
            return str(found[0]["metadata"]["name"]) if found else None

        name = cluster.until(fired, "the schedule to fire", 120)
    finally:
        cluster.kubectl("delete", "cronworkflow", "every-minute", "--cascade=orphan")
    assert cluster.wait(name) == "Succeeded"
    assert cluster.ran(name) == set()
    due = int(name.rsplit("-", 1)[1])
    assert due % 60 == 0
    run = f"{datetime.fromtimestamp(due, UTC):%Y%m%dT%H%M%SZ}-{name}"
    assert cluster.store(store_url).head(plan_key(run)) is not None


@pytest.mark.slow
def test_the_tiny_model_answers(cluster: Cluster, store_url: str, tmp_path: Path) -> None:
    name = cluster.submit("tiny-cpu", store_url)
    assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
    export = cluster.export(store_url, tmp_path)
    folder = tmp_path / "export"
    folder.mkdir()
    for file in export.names():
        (folder / file).write_bytes(export.path(file).read_bytes())
    question, reference = training_pair(cluster, store_url, tmp_path)
    command = [sys.executable, "-c", ASK, str(folder), question]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert answer["stopped"]
    assert answer["text"][:40] == reference[:40]


def training_pair(cluster: Cluster, store_url: str, scratch: Path) -> tuple[str, str]:
    """A question and its answer from the data that the run downloaded: a conversation that begins with the user."""
    from stagecoach.outputs import open_input

    store = cluster.store(store_url)
    prefix = next(o.key for o in store.list("sources/datasets/") if o.key.endswith("/manifest.json"))
    data = open_input(store, prefix.removesuffix("manifest.json"), scratch)
    rows = [json.loads(line) for name in data.names() for line in data.read_bytes(name).decode().splitlines()]
    for row in rows:
        messages = row["messages"]
        if [m["role"] for m in messages[:2]] == ["user", "assistant"] and messages[1].get("content"):
            return messages[0]["content"], messages[1]["content"]
    raise AssertionError("no conversation begins with a user")
