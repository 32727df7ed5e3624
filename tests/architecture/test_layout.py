"""The tree is as the README draws it, with the same files in every stage and one version everywhere."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

from stagecoach.stages import STAGES as TABLE_STAGES
from tests.architecture.source_tree import ROOT, STAGES, parse, shown

DISTRIBUTIONS = ("shared", *(f"stages/{stage}" for stage in STAGES), "workflows")
IMAGES = (*STAGES, "pipeline")


def test_the_table_of_stages_and_the_folders_agree() -> None:
    assert tuple(TABLE_STAGES) == STAGES
    assert {path.name for path in (ROOT / "stages").iterdir() if path.is_dir()} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_same_files(stage: str) -> None:
    folder = ROOT / "stages" / stage
    expected = [
        "README.md",
        "pyproject.toml",
        f"stagecoach_{stage}/__init__.py",
        f"stagecoach_{stage}/__main__.py",
        f"stagecoach_{stage}/py.typed",
        f"stagecoach_{stage}/run.py",
    ]
    assert [name for name in expected if not (folder / name).is_file()] == []


def test_the_entry_points_differ_in_the_stage_name_only() -> None:
    texts = {
        (ROOT / f"stages/{stage}/stagecoach_{stage}/__main__.py").read_text().replace(stage, "STAGE")
        for stage in STAGES
    }
    assert len(texts) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_run_has_the_one_signature(stage: str) -> None:
    path = ROOT / f"stages/{stage}/stagecoach_{stage}/run.py"
    runs = [node for node in parse(path).body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    signatures = [[argument.arg for argument in node.args.args] for node in runs]
    assert signatures == [["config", "inputs", "output", "store"]], shown(path)


def test_every_distribution_has_the_same_version_and_license() -> None:
    projects = [tomllib.loads((ROOT / d / "pyproject.toml").read_text())["project"] for d in DISTRIBUTIONS]
    assert len({project["version"] for project in projects}) == 1
    assert {project["license"] for project in projects} == {"Apache-2.0"}
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def locked_versions(image: str) -> dict[str, str]:
    """Package name -> pinned version of an image's lock."""
    text = (ROOT / f"images/requirements/{image}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_the_versions_that_the_tests_run(image: str) -> None:
    tested = locked_versions("dev")
    assert locked_versions(image)
    assert {name: version for name, version in locked_versions(image).items() if tested.get(name) != version} == {}


@pytest.mark.parametrize("image", [image for image in IMAGES if image != "train"])
def test_torch_is_in_the_train_image_only(image: str) -> None:
    assert not {"torch", "transformers", "triton"} & set(locked_versions(image))


@pytest.mark.parametrize("image", (*IMAGES, "dev", "bootstrap", "real", "bench"))
def test_every_locked_package_has_a_hash(image: str) -> None:
    text = (ROOT / f"images/requirements/{image}.txt").read_text()
    requirements = re.findall(r"^[A-Za-z0-9_.-]+(?:\[[^]]*\])?==(?:.*\\\n)*.*$", text, re.MULTILINE)
    assert requirements
    assert [r.split()[0] for r in requirements if "--hash=sha256:" not in r] == []


def readme_tree() -> list[str]:
    """The paths that the tree drawn in README.md names, folders with a trailing slash."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```text\n(.*?)```", readme, re.DOTALL) if "shared/" in b and "stages/" in b)
    parents: list[str] = []
    paths = []
    for line in block.splitlines():
        match = re.match(r"^((?:  )*)(\S+)(?:  .*)?$", line)
        if match:
            depth = len(match[1]) // 2
            parents[depth:] = [match[2]]
            paths.append("".join(parents))
    return paths


def test_the_readme_tree_is_true() -> None:
    paths = readme_tree()
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_tree_names_every_top_folder() -> None:
    hidden_or_made = {"build", "node_modules"}
    folders = {
        p.name + "/"
        for p in ROOT.iterdir()
        if p.is_dir() and not p.name.startswith(".") and p.name not in hidden_or_made
    }
    assert folders - set(readme_tree()) == set()
