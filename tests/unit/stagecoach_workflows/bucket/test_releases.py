"""Rolling back, and what a run says about its release."""

from __future__ import annotations

import json

import pytest

from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError
from stagecoach.paths import manifest_key
from stagecoach.releases import Release, append_release, check_export, read_releases, released_export
from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.bucket.releases import list_releases, offer_outcome, roll_back
from stagecoach_workflows.cli.main import app
from stagecoach_workflows.notify import ending
from stagecoach_workflows.plan import plan_run
from tests.unit.stagecoach_workflows.recipes import small_recipe

A, B, C, D = "exports/m-a/", "exports/m-b/", "exports/m-c/", "exports/m-d/"
Store = MemoryStore | LocalStore


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore("releases")
    three_releases(store)
    return store


def three_releases(store: Store) -> None:
    """A and B were promoted, C refused."""
    promote(store, A)
    promote(store, B)
    add(store, Release(outcome="refused", candidate=C, export=B, reasons=("its loss is higher",)))


def add(store: Store, release: Release) -> None:
    assert append_release(store, "chat", read_releases(store, "chat"), release)


def test_back_is_the_promotion_before_the_one_that_serves(store: MemoryStore) -> None:
    number, release = roll_back(store, "chat", None, "it swears")
    assert (number, release.candidate, release.export) == (4, B, A)
    assert release.reasons == ("back to number 1", "it swears")
    assert released_export(store, "chat") == A
    assert [(row.name, row.number, row.export, row.outcome) for row in list_releases(store)] == [
        ("chat", 4, A, "rolled back")
    ]


def test_forth_again_by_number(store: MemoryStore) -> None:
    roll_back(store, "chat", None, "")
    assert roll_back(store, "chat", 2, "")[1].export == B
    assert released_export(store, "chat") == B


def promote(store: Store, export: str) -> None:
    store.put(manifest_key(export), export.encode())
    digest = check_export(store, export, None, "test")
    add(store, Release(outcome="promoted", candidate=export, export=export, manifest_sha256=digest))


def test_back_never_leads_to_what_was_rolled_back(store: MemoryStore) -> None:
    """A, B, back to A as B swears, C: behind C lies A."""
    roll_back(store, "chat", None, "it swears")
    promote(store, C)
    assert roll_back(store, "chat", None, "")[1].export == A
    with pytest.raises(MissingInputError, match="is the first export that was promoted"):
        roll_back(store, "chat", None, "")


def test_back_after_three_promotions_goes_step_by_step(store: MemoryStore) -> None:
    promote(store, C)
    promote(store, D)
    assert [roll_back(store, "chat", None, "")[1].export for _ in range(3)] == [C, B, A]


def test_what_somebody_went_forth_to_served_before(store: MemoryStore) -> None:
    """A, B, back to A, forth to B, C: somebody chose B again."""
    roll_back(store, "chat", None, "")
    roll_back(store, "chat", 2, "")
    promote(store, C)
    assert [roll_back(store, "chat", None, "")[1].export for _ in range(2)] == [B, A]


@pytest.mark.parametrize(
    ("to", "error", "sentence"),
    [
        (9, MissingInputError, "expected one of the numbers 1, 2, 3, got 9"),
        (2, ConfigError, "serves already"),
    ],
)
def test_a_number_that_leads_nowhere(store: MemoryStore, to: int, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        roll_back(store, "chat", to, "")


def test_there_is_nothing_before_the_first(store: MemoryStore) -> None:
    roll_back(store, "chat", None, "")
    with pytest.raises(MissingInputError, match="is the first export that was promoted"):
        roll_back(store, "chat", None, "")


def test_it_does_not_go_back_to_what_is_gone_or_changed(store: MemoryStore) -> None:
    store.put(manifest_key(A), b"other")
    with pytest.raises(CorruptObjectError, match="made again"):
        roll_back(store, "chat", None, "")
    store.delete([manifest_key(A)])
    with pytest.raises(MissingInputError, match="is gone"):
        roll_back(store, "chat", None, "")
    assert len(read_releases(store, "chat")) == 3


def test_a_refused_promotion_is_told_and_the_run_succeeds() -> None:
    store, recipe = MemoryStore("run"), small_recipe(export={"release": "chat"})
    plan = plan_run(recipe, store, Settings(), "20261125T013000Z-small")
    assert offer_outcome(store, plan) is None
    export = plan.task("export").output
    refused = Release(outcome="refused", candidate=export, export=A, reasons=("held-out loss 3 is above 2",))
    append_release(store, "chat", {}, refused)
    end = ending(store, plan.run_id, status="Succeeded", workflow="w", namespace="n")
    assert end.succeeded
    assert end.sentence().endswith("; not released as chat: held-out loss 3 is above 2")


def test_the_commands(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path_factory.mktemp("store")
    three_releases(LocalStore(folder))
    assert app(["releases", "--store", str(folder)]) == 0
    assert app(["rollback", "chat", "--reason", "it swears", "--store", str(folder)]) == 0
    assert f"release chat number 4: {B} is taken back, {A} serves" in capsys.readouterr().out
    assert app(["releases", "chat", "--json", "--store", str(folder)]) == 0
    history = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in history] == ["promoted", "promoted", "refused", "rolled back"]
    assert app(["rollback", "chat", "--to", "7", "--store", str(folder)]) == 66


def test_one_damaged_release_does_not_hide_the_others(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = LocalStore(folder)
    three_releases(store)
    store.put("releases/other/0004.json", b"bad")
    rows = [(row.name, row.number, row.outcome, row.export) for row in list_releases(store)]
    assert rows == [("chat", 3, "refused", B), ("other", 4, "unreadable", None)]
    assert app(["releases", "--store", str(folder)]) == 0
    assert f"release other: {store.url}/releases/other/0004.json: " in capsys.readouterr().out
    assert app(["releases", "nobody", "--store", str(folder)]) == 66
