"""What the Dockerfiles promise without being built: pinned base, number as user, locked wheels, budgets."""

from __future__ import annotations

import re
import tomllib

import pytest

from images.build import IMAGES, default_base
from tests.architecture.source_tree import ROOT

DOCKERFILES = ("cpu", "train")


def dockerfile(name: str) -> str:
    return (ROOT / f"images/{name}.Dockerfile").read_text()


def final_stage(name: str) -> str:
    """What becomes the image: everything after the last FROM."""
    return dockerfile(name).rsplit("\nFROM ", 1)[1]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_base_is_named_by_digest_and_can_be_another(name: str) -> None:
    assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", default_base())
    assert f"ARG BASE_IMAGE={default_base()}\n" in dockerfile(name)
    assert re.findall(r"^FROM (\S+)", dockerfile(name), re.MULTILINE) == [
        "${BASE_IMAGE}",
        "dependencies",
        "${BASE_IMAGE}",
    ]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_user_is_a_number_and_the_entrypoint_a_list(name: str) -> None:
    lines = final_stage(name).strip().splitlines()
    assert "USER 65532:65532" in lines
    assert lines[-1] == 'ENTRYPOINT ["/opt/stagecoach/bin/stage"]'


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_wheel_is_checked_against_its_hash(name: str) -> None:
    installs = re.findall(r"pip --python \S+ install (.*)", dockerfile(name))
    assert len(installs) == 3
    assert [i for i in installs if "--require-hashes" not in i and "--no-index" not in i] == []


def test_only_the_train_image_has_a_compiler() -> None:
    assert "gcc" not in dockerfile("cpu")
    assert "gcc" in final_stage("train")


def test_every_image_has_a_lock_and_a_budget() -> None:
    budgets = tomllib.loads((ROOT / "images/budgets.toml").read_text())
    assert set(budgets) == set(IMAGES)
    assert [i for i in IMAGES if not (ROOT / f"images/requirements/{i}.txt").is_file()] == []
    assert all(budget["stage"] < budget["total"] for budget in budgets.values())
