"""Commands over the bucket alone: listing, showing, comparing, tracing, verifying and collecting garbage."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import CorruptObjectError, MissingInputError, StoreDenied, StoreError, StoreUnavailable
from stagecoach.outputs import Output
from stagecoach.paths import finished_prefix, manifest_key, plan_key
from stagecoach.plan_file import Plan, TaskPlan
from stagecoach.records import write_numbered, write_record
from stagecoach.releases import Release, append_release
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.bucket.gc import GRACE_SECONDS, delete_garbage, plan_gc
from stagecoach_workflows.bucket.lineage import lineage, walk
from stagecoach_workflows.bucket.runs import compare_runs, list_runs, show_run
from stagecoach_workflows.bucket.verify import verify_output
from stagecoach_workflows.cli.main import app

NOW = 2_000_000_000.0
OLD_RUN, NEW_RUN = "20261120T000000Z-a", "20261125T000000Z-a"


@pytest.fixture
def directory(tmp_path: Path) -> LocalStore:
    """A directory, for what needs files of chosen ages."""
    return LocalStore(tmp_path / "store")


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, directory: LocalStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store of each kind; S3 is a fresh prefix on the session's SeaweedFS."""
    if request.param == "directory":
        return directory
    server = request.getfixturevalue("seaweed")
    server.use(monkeypatch)
    found: ObjectStore = server.store()
    return found


def _output(store: ObjectStore, tmp_path: Path, prefix: str, data: bytes = b"x", **fields: Any) -> Output:
    output = Output(store, prefix, tmp_path / "scratch")
    output.summary.update(fields.pop("summary", {}))
    output.write_bytes("object", data)
    output.commit(**({"task": "pack", "key": "00ff", "name": "m", "output_version": 1} | fields))
    return output


def _plan(
    store: ObjectStore,
    run_id: str,
    created: float = NOW,
    lr: float = 1.0,
    config: dict[str, Any] | None = None,
    **outputs: str,
) -> None:
    tasks = {
        name: TaskPlan(
            task=name,
            kind=name,
            stage=name,
            decision="run",
            reason="missing",
            name="m",
            key="00ff",
            output=output,
            inputs={},
            config=config or {},
        )
        for name, output in outputs.items()
    }
    recipe = {"name": "tiny", "train": {"lr": lr}}
    plan = Plan(run_id=run_id, recipe=recipe, tasks=tasks, created_unix_seconds=created)
    store.put_if_absent(plan_key(run_id), plan.model_dump_json().encode())


def test_runs_are_listed_newest_first_with_their_last_step(store: ObjectStore, tmp_path: Path) -> None:
    _output(store, tmp_path, "trained/m-00ff/", task="train", summary={"last": 650, "last_loss": 0.25})
    _plan(store, OLD_RUN, train="trained/m-0000/")
    _plan(store, NEW_RUN, train="trained/m-00ff/")
    write_numbered(store, finished_prefix(NEW_RUN), {"state": "succeeded"})
    rows = list_runs(store)
    assert [(row.run_id, row.state, row.step, row.loss) for row in rows] == [
        (NEW_RUN, "succeeded", 650, 0.25),
        (OLD_RUN, "planned", None, None),
    ]
    assert [row.run_id for row in list_runs(store, limit=1)] == [NEW_RUN]
    assert [row.run_id for row in list_runs(store, since="20261121")] == [NEW_RUN]


@pytest.mark.parametrize(
    ("states", "expected"),
    [([], "planned"), (["started"], "running"), (["started", "failed"], "failed"), (["started", "done"], "succeeded")],
)
def test_without_a_finish_record_the_tasks_tell_the_state(store: ObjectStore, states: list[str], expected: str) -> None:
    _plan(store, NEW_RUN, pack="packed/m-00ff/")
    for state in states:
        write_record(store, NEW_RUN, "pack", {"state": state})
    assert [row.state for row in list_runs(store)] == [expected]


def test_a_run_that_failed_and_was_asked_to_go_on_runs_again(store: ObjectStore) -> None:
    _plan(store, NEW_RUN, pack="packed/m-00ff/")
    write_record(store, NEW_RUN, "pack", {"state": "started"})  # killed: it never says more
    write_numbered(store, finished_prefix(NEW_RUN), {"state": "failed", "unix_seconds": time.time()})
    assert [row.state for row in list_runs(store)] == ["failed"]
    time.sleep(0.01)
    write_record(store, NEW_RUN, "pack", {"state": "started"})
    assert [row.state for row in list_runs(store)] == ["running"]
    write_numbered(store, finished_prefix(NEW_RUN), {"state": "succeeded", "unix_seconds": time.time()})
    assert [row.state for row in list_runs(store)] == ["succeeded"]


def test_show_says_what_was_measured(store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"steps": 1_250_000, "last_loss": 0.25, "ok": True, "heldout_last": {"loss": 0.5}, "per_source": {"a": 1}}
    _output(store, tmp_path, "trained/m-00ff/", task="train", summary=summary)
    _plan(store, NEW_RUN, train="trained/m-00ff/")
    assert app(["show", NEW_RUN, "--store", store.url]) == 0
    assert "train: steps 1,250,000, last loss 0.25, held-out loss 0.5\n" in capsys.readouterr().out


def test_a_folder_without_a_plan_is_no_run(store: ObjectStore) -> None:
    store.put("runs/20261125T000000Z-x/notes", b"")
    assert list_runs(store) == []


def test_show_counts_attempts_and_tells_the_last_message(store: ObjectStore) -> None:
    _plan(store, NEW_RUN, pack="packed/m-00ff/")
    for record in ({"state": "started"}, {"state": "failed", "message": "store down"}, {"state": "started"}):
        write_record(store, NEW_RUN, "pack", record)
    _, rows = show_run(store, NEW_RUN)
    assert [(row.state, row.attempts, row.message) for row in rows] == [("started", 2, None)]


def test_compare_lists_only_what_differs(store: ObjectStore) -> None:
    _plan(store, OLD_RUN, lr=1.0, pack="packed/m-00ff/")
    _plan(store, NEW_RUN, lr=2.0, pack="packed/m-00ff/")
    assert compare_runs(store, OLD_RUN, NEW_RUN) == [("recipe.train.lr", 1.0, 2.0)]


def test_lineage_goes_down_to_the_files(store: ObjectStore, tmp_path: Path) -> None:
    files = [{"path": "a.jsonl", "size_bytes": 1, "sha256": "00"}]
    _output(
        store, tmp_path, "sources/datasets/d-1/", config={"source": {"kind": "hub"}, "commit": "c0ffee", "files": files}
    )
    _output(store, tmp_path, "packed/m-2/", inputs={"data": "sources/datasets/d-1/", "gone": "sources/tokenizers/t-9/"})
    nodes = [(depth, node.role, node.task) for depth, node in walk(lineage(store, "packed/m-2"))]
    assert nodes == [(0, "", "pack"), (1, "data", "pack"), (1, "gone", "(deleted)")]
    data = lineage(store, "packed/m-2/").inputs[0]
    assert (data.commit, data.files) == ("c0ffee", files)


def test_lineage_of_nothing_is_a_missing_input(store: ObjectStore) -> None:
    with pytest.raises(MissingInputError, match="no finished output here"):
        lineage(store, "packed/none/")


@pytest.mark.parametrize(
    ("damage", "sentence"), [("flip", "expected sha256"), ("cut", "expected 1 bytes"), ("gone", "missing")]
)
def test_verify_names_what_differs(store: ObjectStore, tmp_path: Path, damage: str, sentence: str) -> None:
    output = _output(store, tmp_path, "packed/m-2/")
    assert verify_output(store, "packed/m-2/") == []
    path = output.objects["object"].path
    store.delete([path])
    if damage != "gone":
        store.put(path, b"y" if damage == "flip" else b"")
    assert [(problem.name, sentence in problem.sentence) for problem in verify_output(store, "packed/m-2/")] == [
        ("object", True)
    ]


def _later(seconds: float = GRACE_SECONDS + 3600) -> float:
    return time.time() + seconds


def test_gc_keeps_what_the_newest_runs_and_releases_need(store: ObjectStore, tmp_path: Path) -> None:
    _output(store, tmp_path, "native/m-1/")
    _output(store, tmp_path, "exports/m-2/", inputs={"native": "native/m-1/"})
    _output(store, tmp_path, "packed/m-3/")
    _output(store, tmp_path, "packed/m-4/")
    _plan(store, OLD_RUN, created=0.0, pack="packed/m-3/")
    _plan(store, NEW_RUN, created=0.0, pack="packed/m-4/")
    append_release(store, "chat", {}, Release(outcome="promoted", candidate="exports/m-2/", export="exports/m-2/"))
    plan = plan_gc(store, keep_runs=1, now_unix_seconds=_later())
    assert [item.prefix for item in plan.garbage] == ["packed/m-3/"]
    assert set(plan.kept) == {"packed/m-4/", "exports/m-2/", "native/m-1/"}


def test_gc_keeps_as_many_releases_as_it_is_told(store: ObjectStore, tmp_path: Path) -> None:
    """Of four exports that served, one twice; the one that serves is always kept."""
    history: dict[int, Release] = {}
    for number, name in enumerate("abcdb", 1):
        export = f"exports/m-{name}/"
        if number < 5:
            _output(store, tmp_path, f"trained/m-{name}/")
            _output(store, tmp_path, export, inputs={"trained": f"trained/m-{name}/"})
        history[number] = Release(outcome="promoted", candidate=export, export=export)
        append_release(store, "chat", {key: history[key] for key in history if key < number}, history[number])

    def gone(keep_releases: int | None) -> set[str]:
        plan = plan_gc(store, 0, _later(), keep_releases=keep_releases)
        return {item.prefix for item in plan.garbage if item.prefix.startswith("exports/")}

    assert gone(None) == set()
    assert gone(3) == {"exports/m-a/"}
    assert gone(2) == {"exports/m-a/", "exports/m-c/"}
    plan = plan_gc(store, 0, _later(), keep_releases=1)
    assert set(plan.kept) == {"exports/m-b/", "trained/m-b/"}


def test_gc_spares_the_export_that_a_run_is_about_to_train_on(store: ObjectStore, tmp_path: Path) -> None:
    _output(store, tmp_path, "exports/m-2/")
    _plan(store, NEW_RUN, config={"source": {"kind": "export", "export": "exports/m-2/"}}, model="sources/models/m-9/")
    assert plan_gc(store, keep_runs=1, now_unix_seconds=_later()).garbage == []


def test_gc_deletes_nothing_when_a_release_cannot_be_read(store: ObjectStore, tmp_path: Path) -> None:
    _output(store, tmp_path, "exports/m-2/")
    append_release(store, "chat", {}, Release(outcome="promoted", candidate="exports/m-2/", export="exports/m-2/"))
    store.put("releases/chat/0002.json", b"{")
    with pytest.raises(CorruptObjectError, match=r"releases/chat/0002\.json"):
        plan_gc(store, keep_runs=0, now_unix_seconds=_later())


def test_gc_spares_a_live_run_and_everything_young(store: ObjectStore, tmp_path: Path) -> None:
    _output(store, tmp_path, "packed/m-3/")
    _output(store, tmp_path, "packed/m-4/")
    _plan(store, NEW_RUN, created=_later() - 3600, pack="packed/m-3/")
    write_record(store, NEW_RUN, "pack", {"state": "started"})
    assert plan_gc(store, keep_runs=0).garbage == []
    assert [item.prefix for item in plan_gc(store, 0, _later()).garbage] == ["packed/m-4/"]


def test_gc_spares_a_training_of_weeks_by_its_heartbeat(directory: LocalStore, tmp_path: Path) -> None:
    store = directory
    _output(store, tmp_path, "native/m-1/")
    _plan(store, NEW_RUN, created=0.0, convert="native/m-1/", train="trained/m-2/")
    write_record(store, NEW_RUN, "train", {"state": "started"})
    old = time.time() - 20 * 24 * 3600
    for info in list(store.list("")):
        os.utime(store.root / info.key, (old, old))
    assert [item.prefix for item in plan_gc(store, keep_runs=0).garbage] == ["native/m-1/"]
    store.put("trained/m-2/heartbeat-0001.json", b"{}")
    assert plan_gc(store, keep_runs=0).garbage == []


def test_gc_spares_what_a_failed_run_needs_to_go_on(directory: LocalStore, tmp_path: Path) -> None:
    store = directory
    _output(store, tmp_path, "native/m-1/")
    for info in list(store.list("")):
        os.utime(store.root / info.key, (0.0, 0.0))
    _plan(store, NEW_RUN, created=time.time(), convert="native/m-1/")
    write_numbered(store, finished_prefix(NEW_RUN), {"state": "failed"})
    assert plan_gc(store, keep_runs=0).garbage == []
    write_numbered(store, finished_prefix(NEW_RUN), {"state": "succeeded"})
    assert [item.prefix for item in plan_gc(store, keep_runs=0).garbage] == ["native/m-1/"]


def test_gc_spares_what_a_run_names_that_was_planned_after_it_looked(store: ObjectStore, tmp_path: Path) -> None:
    _output(store, tmp_path, "native/m-1/")
    _output(store, tmp_path, "native/m-2/")
    plan = plan_gc(store, keep_runs=0, now_unix_seconds=_later())
    _plan(store, NEW_RUN, created=time.time(), convert="native/m-1/")
    delete_garbage(store, plan)
    assert [store.head(f"native/m-{name}/manifest.json") is not None for name in (1, 2)] == [True, False]


def test_gc_removes_left_overs_of_other_tries_only(store: ObjectStore, tmp_path: Path) -> None:
    Output(store, "packed/m-3/", tmp_path / "1").write_bytes("object", b"left over")
    kept = _output(store, tmp_path, "packed/m-3/")
    _plan(store, NEW_RUN, created=0.0, pack="packed/m-3/")
    plan = plan_gc(store, keep_runs=1, now_unix_seconds=_later())
    assert (len(plan.garbage), plan.size_bytes) == (1, 9)
    assert delete_garbage(store, plan) == 1
    assert store.head(kept.objects["object"].path) is not None


def test_gc_deletes_the_manifest_before_any_object(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _output(store, tmp_path, "packed/m-3/")
    deleted: list[list[str]] = []
    monkeypatch.setattr(store, "delete", lambda keys: deleted.append(list(keys)))
    delete_garbage(store, plan_gc(store, keep_runs=0, now_unix_seconds=_later()))
    assert deleted[0] == [manifest_key("packed/m-3/")]
    assert len(deleted) == 2


def test_gc_discards_what_interrupted_puts_left_behind_once_it_is_old(directory: LocalStore) -> None:
    store = directory
    store.put("runs/x/notes", b"")
    left_over = store.root / ".stagecoach-tmp" / "left-over"
    left_over.parent.mkdir(exist_ok=True)
    left_over.write_bytes(b"half")
    assert plan_gc(store, keep_runs=1).uploads == []
    plan = plan_gc(store, keep_runs=1, now_unix_seconds=_later())
    assert [upload.upload_id for upload in plan.uploads] == ["left-over"]
    delete_garbage(store, plan)
    assert not left_over.exists()


@pytest.mark.parametrize("error", [StoreDenied, StoreUnavailable])
@pytest.mark.parametrize("keep_runs", [0, 5])
def test_gc_deletes_nothing_when_the_store_does_not_let_it_read_a_plan(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[StoreError], keep_runs: int
) -> None:
    _output(store, tmp_path, "packed/m-3/")
    _plan(store, NEW_RUN, created=_later() - 3600, pack="packed/m-3/")
    read = store.get

    def get(key: str) -> bytes:
        if key == plan_key(NEW_RUN):
            raise error(store.url, key, "no")
        return read(key)

    monkeypatch.setattr(store, "get", get)
    with pytest.raises(error):
        plan_gc(store, keep_runs, _later())
    with pytest.raises(error):
        list_runs(store)


def test_a_plan_that_cannot_be_read_is_listed_as_that(store: ObjectStore) -> None:
    store.put(plan_key(NEW_RUN), b"{")
    assert [(row.run_id, row.state) for row in list_runs(store)] == [(NEW_RUN, "unreadable")]


@pytest.mark.parametrize(
    "key", [f"runs/{NEW_RUN}/finished/0001.json", f"runs/{NEW_RUN}/train/0001.json", "trained/m-00ff/manifest.json"]
)
def test_one_damaged_record_does_not_hide_the_other_runs(
    directory: LocalStore, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    _plan(directory, OLD_RUN, pack="packed/m-00ff/")
    _plan(directory, NEW_RUN, train="trained/m-00ff/")
    directory.put(key, b"bad")
    assert [(row.run_id, row.recipe, row.state) for row in list_runs(directory)] == [
        (NEW_RUN, "tiny", "unreadable"),
        (OLD_RUN, "tiny", "planned"),
    ]
    assert app(["ls", "--store", directory.url]) == 0
    assert f"{NEW_RUN}: {directory.url}/{key}: " in capsys.readouterr().out


def test_a_folder_that_is_no_release_is_skipped_with_a_warning(
    directory: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _output(directory, tmp_path, "exports/m-2/")
    append_release(directory, "chat", {}, Release(outcome="promoted", candidate="exports/m-2/", export="exports/m-2/"))
    directory.put("releases/JUNK/0001.json", b"{}")
    assert set(plan_gc(directory, keep_runs=0, now_unix_seconds=_later()).kept) == {"exports/m-2/"}
    assert "releases/JUNK/: skipped" in caplog.text
    assert app(["releases", "--store", directory.url]) == 0
