"""``stagecoach render`` writes YAML that a cluster takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stagecoach_workflows.cli.main import app
from stagecoach_workflows.recipes_shipped import shipped_names


def test_it_prints_one_template(capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["render", "micro"]) == 0
    (document,) = yaml.safe_load_all(capfd.readouterr().out)
    assert document["kind"] == "WorkflowTemplate"


def test_a_schedule_comes_with_the_alias_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "out.yaml"
    assert app(["render", "micro", "--cron", "30 1 * * *", "--output", str(file)]) == 0
    template, alias, cron = yaml.safe_load_all(file.read_text())
    assert alias["metadata"]["name"] == "stagecoach-micro"
    assert alias["spec"] == template["spec"]
    assert cron["spec"]["workflowSpec"]["workflowTemplateRef"]["name"] == "stagecoach-micro"


def test_a_setting_and_a_deployment_change_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text("registry: r.example/team\n")
    assert app(["render", "micro", "--set", "train.layout.tensor_parallel=2", "--deployment", str(deployment)]) == 0
    (document,) = yaml.safe_load_all(capfd.readouterr().out)
    train = next(template for template in document["spec"]["templates"] if template["name"] == "train")
    assert train["container"]["image"] == "r.example/team/stagecoach-train:0.1.0"
    assert train["container"]["resources"]["requests"]["cpu"] == "2"


def test_all_writes_every_shipped_recipe(tmp_path: Path) -> None:
    assert app(["render", "--all", "--output", str(tmp_path)]) == 0
    assert sorted(path.stem for path in tmp_path.iterdir()) == shipped_names()
