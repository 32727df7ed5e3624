"""The micro recipe from end to end with the real stages: what it leaves, and what the same command does again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stagecoach.manifest import read_manifest
from stagecoach.paths import finished_prefix
from stagecoach.records import read_numbered
from stagecoach_workflows.bucket.verify import output_prefixes, verify_output
from tests.micro_run import RUN, TASKS, MicroWork

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once
LOAD = """
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "Hello"}]
encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
logits = model(**encoded).logits
assert torch.isfinite(logits).all()
print(model.config.model_type, model.num_parameters(), tokenizer.decode(model.generation_config.eos_token_id[:1]))
"""


def test_every_task_finishes_and_every_byte_is_as_recorded(micro: MicroWork) -> None:
    plan = micro.plan()
    assert sorted(plan.tasks) == TASKS
    assert [task.decision for task in plan.tasks.values()] == ["run"] * len(TASKS)
    assert sorted(output_prefixes(micro.store)) == sorted(task.output for task in plan.tasks.values())
    assert [problem for output in output_prefixes(micro.store) for problem in verify_output(micro.store, output)] == []


def test_the_run_is_recorded_as_succeeded(micro: MicroWork) -> None:
    end = read_numbered(micro.store, finished_prefix(RUN))[1]
    assert (end["state"], end["exit_code"]) == ("succeeded", 0)


def test_it_learns(micro: MicroWork) -> None:
    trained = micro.manifest("train")
    assert trained is not None
    assert trained.summary["last"] == 8
    assert trained.summary["last_loss"] < trained.summary["first_loss"]


@pytest.fixture
def hub(micro: MicroWork) -> Path:
    """The export's files under their names, as on the Hub."""
    exported = micro.manifest("export")
    assert exported is not None
    folder = micro.folder / "hub"
    folder.mkdir(exist_ok=True)
    for name, entry in exported.objects.items():
        micro.store.get_file(entry.path, folder / name)
    return folder


def test_the_export_loads_in_transformers(micro: MicroWork, hub: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(hub)], env=micro.environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["mistral", "59552", "<|im_end|>"]


def test_the_model_card_tells_data_recipe_losses_and_how_to_run_it(micro: MicroWork, hub: Path) -> None:
    card = (hub / "README.md").read_text(encoding="utf-8")
    packed, trained = micro.manifest("pack"), micro.manifest("train")
    assert packed is not None and trained is not None
    sections = re.split(r"^## ", card, flags=re.MULTILINE)
    data, training, losses, run_it = sections[1:]
    assert [section.split("\n")[0] for section in sections[1:]] == ["Data", "Training", "Losses", "Run it"]
    assert f"| conversations from demo | {packed.summary['sources']['demo']:,} |" in data
    assert f"| trained tokens (answers) | {packed.summary['num_trained_tokens']:,} |" in data
    for field in ("lr", "packs_per_step", "seed", "layout"):
        assert f"| {field} | " in training
    curve, table = losses.split("```")[1], losses.split("```")[2]
    assert len(curve.strip()) == trained.summary["last"]
    rows = [line.strip("| ").split(" | ") for line in table.strip().split("\n")]
    assert rows[0] == ["step", "training loss since the row above", "held-out loss", "held-out next-token accuracy"]
    assert (rows[2][0], rows[-1][0]) == ("0", str(trained.summary["last"]))
    assert float(rows[-1][2]) == pytest.approx(trained.summary["heldout_last"]["loss"], abs=1e-3)
    assert "vllm serve ." in run_it and "llama-cli -m model.gguf --jinja" in run_it
    python = run_it.split("```python\n")[1].split("```")[0]
    result = subprocess.run(
        [sys.executable, "-c", python], cwd=hub, env=micro.environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_same_command_again_starts_no_stage(micro: MicroWork) -> None:
    """The plan of that run id is read, not made anew; each stage that it names finds its work done."""
    before = micro.plan()
    made = {output: read_manifest(micro.store, output) for output in output_prefixes(micro.store)}
    result = micro.run()
    assert result.returncode == 0, result.stderr
    assert micro.plan() == before
    assert {output: read_manifest(micro.store, output) for output in output_prefixes(micro.store)} == made


def test_a_new_run_starts_no_stage(micro: MicroWork) -> None:
    run_id = "20261125T023000Z-micro-second"
    result = micro.run(run_id=run_id)
    assert result.returncode == 0, result.stderr
    assert {task.decision for task in micro.plan(run_id).tasks.values()} == {"skip"}
    started = {info.key.split("/")[2] for info in micro.store.list(f"runs/{run_id}/")}
    assert started == {"finished", "plan.json"}
    assert sorted(file.stem for file in (micro.folder / run_id / "logs").iterdir()) == ["plan"]


def test_another_recipe_under_the_same_run_id_is_refused(micro: MicroWork) -> None:
    before = sorted(info.key for info in micro.store.list("") if not info.key.startswith(finished_prefix(RUN)))
    result = micro.run("--set", "train.seed=7")
    assert result.returncode == 78
    assert f"run {RUN}: exists with another recipe (train.seed: " in result.stderr
    after = sorted(info.key for info in micro.store.list("") if not info.key.startswith(finished_prefix(RUN)))
    assert after == before


def test_the_training_on_another_layout_is_the_same_work(micro: MicroWork) -> None:
    """Its key takes ``native``, not ``shards``: with the weights there, nothing has to run."""
    run_id = "20261125T033000Z-micro-third"
    result = micro.run("--set", "train.layout.tensor_parallel=2", run_id=run_id)
    assert result.returncode == 0, result.stderr
    assert {task.decision for task in micro.plan(run_id).tasks.values()} == {"skip"}
    assert json.loads(micro.store.get(f"runs/{run_id}/plan.json"))["recipe"]["train"]["layout"]["tensor_parallel"] == 2
