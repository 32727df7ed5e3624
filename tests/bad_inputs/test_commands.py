"""Command lines, settings, deployments, stores and environments with something wrong, each before any work."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from stagecoach.contract import stage_main
from tests.bad_inputs.refusals import Outcome, command, stage
from tests.seaweed import SeaweedServer

RUN = "20261125T013000Z-micro-first"

SETTINGS: dict[str, str] = {
    "train.stepz=3": "--set train.stepz: there is no field 'stepz'; did you mean 'steps'?",
    "nonsense=3": "--set nonsense: there is no field 'nonsense'; known here: name, ",
    "train.steps": "--set train.steps: expected PATH=VALUE",
    "=3": "--set : there is no field ''",
    "train.=3": "--set train.: there is no field ''",
    ".steps=3": "--set .steps: there is no field ''",
    "train..steps=1": "--set train..steps: there is no field ''",
    "data.sources.7.rows=3": "--set data.sources.7.rows: 7 names no item of the list before it",
    "data.sources.x.rows=3": "--set data.sources.x.rows: 'x' names no item",
    "data.sources.-1.rows=1": "--set data.sources.-1.rows: '-1' names no item",
    "data.sources.0=1": "data.sources.0: expected a section with fields, got '1'",
    "train.layout=": "train.layout: expected a section with fields, got nothing",
    "name=": "name: expected a text, got nothing",
    "train.steps=[": "--set train.steps: not valid YAML: '['",
    "train.steps={a: b": "--set train.steps: not valid YAML",
    "train.steps=!!python/name:os.system": "--set train.steps: not valid YAML",
    "train.steps=!!bool x": "--set train.steps: not valid YAML",
    "train.steps=!!timestamp x": "--set train.steps: not valid YAML",
    "train.steps=*a": "--set train.steps: not valid YAML",
    "train.steps.deep=1": "train.steps: expected a whole number, got a section with deep",
    "train.betas.5=0.1": "--set train.betas.5: 5 names no item of a list of 0",
    f"train.seed={2**63}": f"train.seed: expected a number below {2**63}",
    "train.steps=1e400": "train.steps: expected a finite number, got 'inf'",
    "train.layout.tensor_paralel=2": "--set train.layout.tensor_paralel: there is no field",
}

USAGE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("check",), "Missing argument 'RECIPE'"),
    (("launch",), "No such command 'launch'"),
    (("check", "micro", "--fast"), "No such option: --fast"),
    (("check", "micro", "--set"), "Option '--set' requires an argument"),
    (("check", "micro", "tiny-cpu"), "unexpected extra argument"),
    (("run", "micro", "--jobs", "0"), "'--jobs'"),
    (("run", "micro", "--jobs", "x"), "'--jobs'"),
    (("run", "micro", "--retries", "-1"), "'--retries'"),
    (("run", "micro", "--answers", "-1"), "'--answers'"),
    (("run", "micro", "--require-answers", "-1"), "'--require-answers'"),
    (("run", "micro", "--require-answers", "5"), "--require-answers: expected at most --answers = 0, got 5"),
    (("run", "micro", "--answers", "4", "--require-answers", "5"), "expected at most --answers = 4, got 5"),
    (("run", "micro", "--store", "s3", "--require-answers", "5"), "expected at most --answers = 0, got 5"),
    (
        ("run", "micro", "--answers", "1", "--runner", "argo"),
        "--answers: expected the runner local or docker, got argo",
    ),
    (("run", "micro", "--answers", "1", "--runner", "slurm"), "expected the runner local or docker, got slurm"),
    (("run", "micro", "--runner", "k8s"), "'k8s' is not one of"),
    (("run", "micro", "--run", "abc"), "run id: expected the form 20261125T013000Z-some-name"),
    (("run", "micro", "--run", "../../x"), "run id: expected the form"),
    (("run", "micro", "--run", "20261125T013000Z-A"), "run id: expected the form"),
    (("run", "micro", "--run", "20261125T013000Z-" + "a" * 80), "run id: expected the form"),
    (("check", "nobody"), "recipe 'nobody': expected a readable YAML file or one of codeact-mixture"),
    (("check", "."), "Is a directory"),
    (("check", "micro/../micro"), "expected a readable YAML file"),
    (("show", "abc"), "run id: expected the form"),
    (("compare", "../x", RUN), "run id: expected the form"),
    (("ls", "--limit", "0"), "'--limit'"),
    (("ls", "--since", "yesterday"), "--since"),
    (("ls", "--since", "20261340"), "--since"),
    (("ls", "--since", "20261125T25"), "--since"),
    (("gc", "--keep", "-1"), "'--keep'"),
    (("lineage", "../../etc"), "expected"),
    (("verify", "/etc/passwd"), "expected"),
    (("rollback", "A B"), "release name: expected"),
    (("rollback", "nobody"), "nobody"),
)

LOOKING: tuple[tuple[str, ...], ...] = (
    ("ls",),
    ("ls", "--json"),
    ("show", RUN),
    ("compare", RUN, RUN),
    ("compare", RUN, RUN, "--page", "page.html"),
    ("lineage", "exports/x-00112233445566778899"),
    ("verify",),
    ("verify", "exports/x-00112233445566778899"),
    ("gc", "--keep", "1"),
    ("gc", "--keep", "1", "--delete"),
    ("releases",),
    ("releases", "chat"),
    ("rollback", "chat"),
    ("logs", RUN),
    ("logs", RUN, "--follow"),
    ("report", RUN),
    ("export", RUN),
    ("chat", "release:chat"),
    ("serve", "release:chat"),
)
"""Commands over the bucket alone: where there is none, each says so and makes none."""

DEPLOYMENTS: dict[str, tuple[bytes | None, str]] = {
    "absent": (None, "expected a readable YAML or JSON file"),
    "a list": (b"- a", "expected a mapping, got list"),
    "empty": (b"", "expected a mapping, got NoneType"),
    "no YAML": (b"a: [", "expected a readable YAML or JSON file"),
    "not UTF-8": (b"\xff\xfe\xfa", "expected a readable YAML or JSON file"),
    "an unknown field": (b"registryy: x", "registryy: "),
    "root": (b"user_id: 0", "user_id: "),
    "a pull policy": (b"image_pull_policy: Sometimes", "'IfNotPresent', 'Always' or 'Never'"),
    "an unknown image": (b"images: {trian: x}", "expected names of download, convert"),
    "an unknown task": (b"resources: {nobody: {cpu: 1}}", "got nobody"),
    "negative cores": (b"resources: {train: {cpu: -1}}", "resources.train.cpu: "),
    "a toleration without a key": (b"tolerations: [{operator: Exists}]", "tolerations.0.key: "),
    "no days": (b"keep_days: 0", "keep_days: "),
}

STORES: dict[str, str] = {
    " ": "store: expected a directory, file:///directory, s3://bucket/prefix or memory://name, got an empty text",
    "ftp://x": "got 'ftp://x'",
    "http://bucket": "got 'http://bucket'",
    "gs://bucket/x": "got 'gs://bucket/x'",
    "s3:/bucket": "got 's3:/bucket'; write two slashes",
    "file:x": "got 'file:x'; write two slashes",
    "s3://": "store: expected s3://bucket/prefix",
    "s3:///x": "store: expected s3://bucket/prefix",
    "s3://a": "store: expected s3://bucket/prefix",
    "s3://key:hidden@bucket/x": "got 's3://***@bucket/x'",
    "s3://bucket/a/../b": "it has a part '.' or '..'",
    "s3://bucket/a//b": "it has an empty part",
    "s3://bucket/x?token=hidden": "got 's3://bucket/x?token=***'",
    "s3://bucket/\x01": "object key",
    "file://host/x": "store: expected file:///absolute/directory",
}

ENVIRONMENTS: dict[str, tuple[dict[str, str], str]] = {
    "addressing": (
        {"STAGECOACH_S3_ADDRESSING": "magic"},
        "STAGECOACH_S3_ADDRESSING: expected one of auto, path, virtual",
    ),
    "checksums": ({"STAGECOACH_S3_CHECKSUMS": "never"}, "STAGECOACH_S3_CHECKSUMS: expected one of"),
    "rank": ({"RANK": "first"}, "RANK: expected a whole number"),
    "negative rank": ({"RANK": "-1"}, "RANK: expected a whole number"),
    "world size": ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number"),
    "port": ({"MASTER_PORT": "http"}, "MASTER_PORT: expected a whole number"),
    "node": ({"STAGECOACH_NODE_RANK": "1.5"}, "STAGECOACH_NODE_RANK: expected a whole number"),
    "endpoint without a scheme": ({"STAGECOACH_S3_ENDPOINT_URL": "localhost:8333"}, "STAGECOACH_S3_ENDPOINT_URL"),
    "endpoint of another scheme": ({"STAGECOACH_S3_ENDPOINT_URL": "ftp://host"}, "STAGECOACH_S3_ENDPOINT_URL"),
    "endpoint with a password": ({"STAGECOACH_S3_ENDPOINT_URL": "http://me:hidden@host"}, "'http://***@host'"),
    "endpoint without a host": ({"STAGECOACH_S3_ENDPOINT_URL": "http://"}, "STAGECOACH_S3_ENDPOINT_URL"),
    "Hub address without a scheme": ({"HF_ENDPOINT": "hub.example"}, "HF_ENDPOINT"),
    "bundle that is not there": ({"STAGECOACH_S3_CA_BUNDLE": "/nonexistent/ca.pem"}, "/nonexistent/ca.pem"),
    "scratch that is a file": ({"STAGECOACH_SCRATCH": "/dev/null"}, "STAGECOACH_SCRATCH"),
}

BY_HAND: dict[str, tuple[str, str, str]] = {
    "no JSON": ("pack", "{", "expected a JSON file, got"),
    "a list": ("pack", "[]", "expected an object with task, config, inputs and name"),
    "an unknown key": ("pack", '{"tasks": "pack"}', "expected an object with task, config, inputs and name"),
    "a task of another stage": ("pack", '{"task": "convert"}', "task: expected one of pack, got 'convert'"),
    "no config": ("pack", '{"task": "pack"}', "data: "),
    "an unknown field": ("shard", '{"config": {"tensor": 2}}', "tensor: "),
    "a name that leaves": ("shard", '{"config": {}, "name": "../x"}', "name: expected 1 to 63 characters"),
    "an input that leaves": ("shard", '{"config": {}, "inputs": {"native": "../../etc/"}}', "expected"),
    "inputs that are a list": ("shard", '{"config": {}, "inputs": [1]}', "inputs"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, so that no credentials of this machine are found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def refuse(done: Outcome, sentence: str, exit_code: int = 78) -> None:
    done.assert_refused(exit_code, sentence)
    assert "hidden" not in done.said


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting(setting: str, tmp_path: Path) -> None:
    refuse(command(tmp_path, "check", "micro", "--set", setting), SETTINGS[setting])


@pytest.mark.parametrize(("arguments", "sentence"), USAGE, ids=[" ".join(row[0])[:50] for row in USAGE])
def test_a_command_line(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    (tmp_path / ".run/store").mkdir(parents=True)
    done = command(tmp_path, *arguments)
    refuse(done, sentence, 66 if arguments == ("rollback", "nobody") else 78)


@pytest.mark.parametrize("case", DEPLOYMENTS)
def test_a_deployment(case: str, tmp_path: Path) -> None:
    content, sentence = DEPLOYMENTS[case]
    file = tmp_path / "deployment.yaml"
    if content is not None:
        file.write_bytes(content)
    done = command(tmp_path, "check", "micro", "--deployment", str(file))
    done.assert_refused(78, str(file), sentence)


@pytest.mark.parametrize("url", STORES)
def test_a_store(url: str, tmp_path: Path) -> None:
    refuse(command(tmp_path, "check", "micro", "--store", url), STORES[url])


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_an_environment(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, sentence = ENVIRONMENTS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse(command(tmp_path, "check", "micro", "--store", "s3://bucket/x"), sentence)


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for arguments in (("ls",), ("check", "micro"), ("run", "micro", "--run", RUN), ("gc", "--keep", "1")):
        refuse(command(tmp_path, *arguments, "--store", str(tmp_path / "file")), "store: expected a directory")


@pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
def test_a_store_folder_that_is_not_there(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """It looked like an empty one."""
    refuse(
        command(tmp_path, *arguments, "--store", "nowhere/store"), f"store: there is no directory {tmp_path}/nowhere"
    )
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("arguments", [("ls",), ("gc", "--keep", "1"), ("show", RUN)], ids=" ".join)
def test_no_store_of_this_folder(arguments: tuple[str, ...], tmp_path: Path) -> None:
    refuse(command(tmp_path, *arguments), f"store: there is no directory {tmp_path}/.run/store")


@pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
def test_a_bucket_that_is_not_there(
    arguments: tuple[str, ...], tmp_path: Path, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seaweed.use(monkeypatch)
    refuse(command(tmp_path, *arguments, "--store", "s3://nobodys/store"), "has no such bucket; make it or correct")


@pytest.mark.parametrize(("name", "place"), [("run", "/sys"), ("run", "file"), ("check", "file")])
def test_a_work_folder_where_nothing_can_be_written(name: str, place: str, tmp_path: Path) -> None:
    """``/sys`` lets nobody make a folder, root included."""
    (tmp_path / "file").write_bytes(b"")
    place = str(tmp_path / place)  # an absolute place replaces what stands before it
    refuse(_without_heading(command(tmp_path, name, "micro", "--work", f"{place}/work")), place)


def _without_heading(done: Outcome) -> Outcome:
    """Leave out the line that names the run."""
    return replace(done, sentences=[line for line in done.sentences if not line.startswith("run ")])


def test_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(command(tmp_path, "check", "micro", "--store", "s3://bucket/x"), "no usable credentials")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refuse(command(tmp_path, "check", "micro", "--store", "s3://bucket/x"), "nobody")


@pytest.mark.parametrize("case", BY_HAND)
def test_a_task_by_hand(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, text, sentence = BY_HAND[case]
    file = tmp_path / "task.json"
    file.write_text(text, encoding="utf-8")
    assert stage_main(name, ["--store", str(tmp_path / "store"), "--config", str(file)]) == 78
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in said
    assert not (tmp_path / "store").exists()


Damage = Callable[[bytes], bytes]
RECORDS: Mapping[str, tuple[Damage, int, str]] = {
    "cut": (lambda data: data[: len(data) // 2], 79, "plan.json"),
    "empty": (lambda data: b"", 79, "plan.json"),
    "a list": (lambda data: b"[]", 79, "plan.json"),
    "other JSON": (lambda data: b'{"run_id": 5}', 79, "plan.json"),
    "a changed digit": (
        lambda data: data.replace(b'"seed": 7', b'"seed": 8').replace(b'"seed":7', b'"seed":8'),
        79,
        "plan.json",
    ),
    "not UTF-8": (lambda data: b"\xff" + data, 79, "plan.json"),
}


@pytest.fixture(scope="module")
def plan_data() -> bytes:
    """A valid plan of a micro run."""
    from stagecoach.plan_file import plan_bytes
    from stagecoach.settings import Settings
    from stagecoach.storage.memory import MemoryStore
    from stagecoach_workflows.plan import make_plan
    from stagecoach_workflows.recipes_shipped import load_recipe

    return plan_bytes(make_plan(load_recipe("micro"), MemoryStore(), Settings(), RUN))


@pytest.mark.parametrize("case", RECORDS)
def test_a_damaged_plan(case: str, tmp_path: Path, plan_data: bytes) -> None:
    damage, exit_code, sentence = RECORDS[case]
    plan = tmp_path / "store/runs" / RUN / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(plan_data)
    command(tmp_path, "show", RUN, "--store", str(tmp_path / "store"))
    assert damage(plan_data) != plan_data
    plan.write_bytes(damage(plan_data))
    command(tmp_path, "show", RUN, "--store", str(tmp_path / "store")).assert_refused(exit_code, sentence)


def test_a_run_and_a_task_that_are_not_there(tmp_path: Path, plan_data: bytes) -> None:
    store = tmp_path / "store"
    store.mkdir()
    command(tmp_path, "show", RUN, "--store", str(store)).assert_refused(66, RUN)
    plan = store / "runs" / RUN / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(plan_data)
    assert stage_main("pack", ["--store", str(store), "--run", RUN, "--task", "pakc"]) == 66
    assert stage_main("pack", ["--store", str(store), "--run", RUN, "--task", "convert"]) == 78
    assert stage_main("pack", ["--store", str(store), "--run", "x/../y"]) == 78


MANIFESTS: dict[str, tuple[str | None, int]] = {
    "absent": (None, 66),
    "empty": ("", 79),
    "a list": ("[]", 79),
    "no JSON": ("{", 79),
    "of something else": (json.dumps({"format": 1}), 79),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_an_input_without_a_valid_manifest(case: str, tmp_path: Path) -> None:
    content, exit_code = MANIFESTS[case]
    prefix = "native/x-00112233445566778899/"
    if content is not None:
        (tmp_path / "store" / prefix).mkdir(parents=True)
        (tmp_path / "store" / prefix / "manifest.json").write_text(content)
    done = stage(
        tmp_path,
        tmp_path / "store",
        "shard",
        {"config": {"tensor_parallel": 1, "pipeline_parallel": 1, "virtual_stages": 1}, "inputs": {"native": prefix}},
    )
    assert done.exit_code == exit_code, done.said
    assert len(done.sentences) == 1
    assert prefix in done.sentences[0]
    assert not (tmp_path / "store/shards").exists()
