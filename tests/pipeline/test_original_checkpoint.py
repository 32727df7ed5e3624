"""A checkpoint of the original system as the model of a recipe: from its rank files to an export, by the one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stagecoach.formats.tensor_file import TensorFile
from stagecoach.outputs import open_input
from tests.micro_run import RUN, MicroWork
from tests.tiny_models import hub_arrays, tokenizer_directory
from tests.unit.stagecoach_convert.original_checkpoints import CONFIG, original_files


def test_iteration_0_of_a_run_from_rank_files_is_what_they_hold(tmp_path: Path) -> None:
    """Two tensor ranks, two stages and a training's own iteration, beside its optimizer, which stays where it is."""
    model = tmp_path / "model"
    files = original_files(2, 2, nested=True, iteration="iter_0000152", file_name="model_rng.pt")
    files |= {name.replace("model_rng.pt", "optim.pt"): b"moments" for name in files if name.endswith("model_rng.pt")}
    files |= {"config.json": json.dumps(CONFIG).encode(), **tokenizer_directory(320, chatml_at=(318, 319))}
    for name, data in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(data)

    work = MicroWork(tmp_path / "work")
    source = ("--set", f"model.source={{kind: directory, path: {model}}}")
    done = work.run(*source, "--set", "train.layout.tensor_parallel=1", "--set", "export={iteration: 0, dtype: fp32}")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = work.plan(RUN)
    taken = open_input(work.store, plan.task("download-model").output, tmp_path / "in").names()
    assert [name for name in taken if name.endswith("optim.pt")] == []
    export = open_input(work.store, plan.task("export").output, tmp_path / "in")
    found, expected = TensorFile.open(export.path("model.safetensors")), hub_arrays(CONFIG)
    assert sorted(found.names()) == sorted(expected)
    assert all(np.array_equal(found.tensor(name), array[:320]) for name, array in expected.items())
