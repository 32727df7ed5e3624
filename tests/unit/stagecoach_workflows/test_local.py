"""A step as a subprocess of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.engine import TaskRun
from stagecoach_workflows.interpret import Step, read_workflow
from stagecoach_workflows.local import LocalLauncher
from tests.unit.stagecoach_workflows.documents import container, document, task


def started(tmp_path: Path, step: Step, *args: str, extra: dict[str, str] | None = None) -> str:
    """What the step writes."""
    graph = read_workflow(document([task("a")], [container("a", "")]))
    run = TaskRun(spec=graph.tasks[0], folder=tmp_path / "a", log=tmp_path / "log")
    run.artifacts.mkdir(parents=True)
    with open(run.log, "wb") as log:
        assert LocalLauncher(extra).start(step, args, run, log).wait(60) == 0
    return run.log.read_text()


def step(script: str, **changes: object) -> Step:
    values = {
        "name": "a",
        "image": "image",
        "command": ("python", "-c", script),
        "args": (),
        "env": {"STAGECOACH_ARTIFACTS": "/work/artifacts", "STAGECOACH_IMAGE_DIGEST": "image", "OTHER": "/work/x"},
        "mounts": {"artifacts": "/work/artifacts", "scratch": "/tmp"},
        "inputs": (),
        "outputs": {},
        "retry": None,
    }
    return Step(**{**values, **changes})  # type: ignore[arg-type]


def test_paths_on_the_artifacts_volume_become_local_ones(tmp_path: Path) -> None:
    script = "import os; print(os.environ['STAGECOACH_ARTIFACTS'], os.environ['OTHER'])"
    assert started(tmp_path, step(script)) == f"{tmp_path / 'a/artifacts'} /work/x\n"


def test_no_image_digest_is_recorded_where_no_image_runs(tmp_path: Path) -> None:
    assert started(tmp_path, step("import os; print('STAGECOACH_IMAGE_DIGEST' in os.environ)")) == "False\n"


def test_progress_goes_where_the_runner_looks(tmp_path: Path) -> None:
    script = "import os; print(os.environ['ARGO_PROGRESS_FILE'])"
    assert started(tmp_path, step(script)) == f"{tmp_path / 'a/progress'}\n"


def test_arguments_and_extra_variables_reach_the_process(tmp_path: Path) -> None:
    script = "import os, sys; print(sys.argv[1:], os.environ['EXTRA'])"
    assert started(tmp_path, step(script), "--a=b c", extra={"EXTRA": "1"}) == "['--a=b c'] 1\n"


def test_each_attempt_is_a_process_group_of_its_own(tmp_path: Path) -> None:
    assert started(tmp_path, step("import os; print(os.getpgid(0) == os.getpid())")) == "True\n"


def test_nothing_but_python_is_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected command python"):
        started(tmp_path, step("", command=("sh", "-c", "true")))
