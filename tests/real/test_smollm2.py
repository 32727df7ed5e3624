"""A real model and real conversations go through the whole pipeline: exact where nothing is trained, better where
something is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from stagecoach.formats.packed import PackedSplit
from stagecoach.manifest import read_manifest
from stagecoach.metrics_file import read_metrics
from stagecoach.outputs import Input, open_input
from stagecoach.plan_file import Plan, read_plan
from stagecoach.storage.local import LocalStore
from tests.real.smollm2 import write_hub_directory

CHAT = Path(__file__).parents[3] / "shared/data/chat/glaive_toolcall_en_demo.json"
QUESTION = "What is the capital of France?"
MAX_ANSWER_TOKENS = 48
TEXT = (
    "Seven of the 1,024 travellers (0.68 %) crossed the pass in winter; the others waited in Brig.\n"
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2\n"
    'Zwölf Boxkämpfer jagen Viktor. 東京は日本の首都です。 {"name": "search", "arguments": {"city": "Łódź"}} 🚂'
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not CHAT.is_file(), reason="needs the real conversations of ../shared/data/chat"),
]


@dataclass(frozen=True)
class Pipeline:
    """The pipeline on the real model: one store for every run."""

    source: Path
    work: Path

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.work / "store")

    def run(self, run_id: str, *settings: str) -> Plan:
        places = (
            f"model.source={{kind: directory, path: {self.source}}}",
            f"data={{name: glaive, sources: [{{name: glaive, source: {{kind: directory, path: {CHAT}}}}}]}}",
        )
        options = [part for setting in (*places, *settings) for part in ("--set", setting)]
        command = [sys.executable, "-m", "stagecoach_workflows", "run", "smollm2-135m-cpu", "--run", run_id]
        done = subprocess.run(
            [*command, "--work", str(self.work), *options], capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return read_plan(self.store, run_id)

    def output(self, plan: Plan, task: str) -> Input:
        return open_input(self.store, plan.task(task).output, self.work / "scratch")

    def exported(self, plan: Plan, folder: Path) -> Path:
        """Put the export's files under their names into a folder, as a user would download them."""
        exported = self.output(plan, "export")
        for name in exported.names():
            (folder / name).symlink_to(exported.path(name))
        return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    write_hub_directory(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(source, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def trained(pipeline: Pipeline) -> Plan:
    return pipeline.run("20260101T000000Z-trained")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # in evaluation mode


def logits(model: Any, folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = model(input_ids=ids).logits[0]
    assert isinstance(found, torch.Tensor)
    return found


def answer(model: Any, folder: Path) -> tuple[str, bool]:
    """Return the greedy answer to the question, and whether the model ended it itself."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)[0]
    new = ids[prompt["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(new, skip_special_tokens=True), new[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def document_losses(pipeline: Pipeline, trained: Plan) -> dict[int, dict[str, tuple[float, int]]]:
    """Step -> conversation hash -> loss sum and targets; pieces of one conversation are added up."""
    found: dict[int, dict[str, tuple[float, int]]] = {}
    for record in read_metrics(pipeline.store, trained.task("train").output):
        if record["kind"] == "evaluation":
            sums = found.setdefault(record["step"], {})
            for name, loss_sum, targets in record["documents"]:
                before = sums.get(name.split("+")[0], (0.0, 0))
                sums[name.split("+")[0]] = (before[0] + loss_sum, before[1] + targets)
    return found


def mean_loss(sums: Mapping[str, tuple[float, int]]) -> float:
    return sum(loss for loss, _ in sums.values()) / sum(targets for _, targets in sums.values())


def test_tool_calls_reach_the_packs_through_a_template_without_tools(pipeline: Pipeline, trained: Plan) -> None:
    packed = pipeline.output(trained, "pack")
    assert packed.summary["chat_format"] == "tokenizer" and packed.summary["bad_rows"] == 0
    report = json.loads(packed.read_bytes("report.json"))
    assert report["tokens"]["conversations_with_tools_as_text"] > 100
    tokenizer = Tokenizer.from_file(str(pipeline.source / "tokenizer.json"))
    split = PackedSplit.open(packed, "train")
    text = "".join(
        tokenizer.decode(split.pack(at).tokens.tolist(), skip_special_tokens=False) for at in range(split.num_packs)
    )
    assert text.count('<|im_start|>assistant\n<tool_call>\n{"name": "') > 100
    assert text.count("<|im_start|>user\n<tool_response>\n") > 100


def test_some_steps_lower_the_heldout_loss_and_keep_what_the_model_knew(
    pipeline: Pipeline, trained: Plan, tmp_path: Path
) -> None:
    losses = document_losses(pipeline, trained)
    first, last = losses[0], losses[max(losses)]
    folder = pipeline.exported(trained, tmp_path)
    text, stopped = answer(load(folder), folder)
    print(f"held-out {mean_loss(first):.4f} -> {mean_loss(last):.4f} at step {max(losses)}; {text!r}")
    assert max(losses) >= 8
    assert len(first) >= 16 and first.keys() == last.keys()
    assert mean_loss(last) <= 0.95 * mean_loss(first)
    assert "Paris" in text and stopped


def test_without_a_step_the_export_is_the_source(pipeline: Pipeline, trained: Plan, tmp_path: Path) -> None:
    expected = logits(load(pipeline.source), pipeline.source)
    weights = pipeline.output(trained, "download-model").entry("model.safetensors").path
    (pipeline.work / "store" / weights).unlink()
    plan = pipeline.run("20260101T010000Z-untrained", "export.iteration=0")
    assert {name for name, task in plan.tasks.items() if task.decision == "run"} == {"export"}
    manifest = read_manifest(pipeline.store, plan.task("export").output)
    assert manifest is not None and manifest.summary["iteration"] == 0
    folder = pipeline.exported(plan, tmp_path)
    model = load(folder)
    error = float((logits(model, folder)[:, : expected.shape[1]] - expected).abs().max())
    text, stopped = answer(model, folder)
    print(f"largest logit error {error:.3g} of {float(expected.abs().max()):.3g}; {text!r}")
    assert error <= 1e-5
    assert "Paris" in text and stopped
