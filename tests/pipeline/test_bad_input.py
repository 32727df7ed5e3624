"""Bad input through the command line: one sentence, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stagecoach_workflows
from stagecoach.settings import child_environ
from tests.loopback import QuietHandler, served
from tests.micro_run import MicroWork
from tests.tiny_models import CONFIGS, hub_arrays, tensor_file_bytes, tokenizer_directory

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once
MICRO = Path(stagecoach_workflows.__path__[0]) / "recipes/micro.yaml"
CONVERSATIONS = [
    {"messages": [{"role": "user", "content": f"w5 w{number}"}, {"role": "assistant", "content": "w7"}]}
    for number in range(10, 20)
]
CONFIG = CONFIGS["llama-2"]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """A tiny model and a chat file as directory sources, both good until a test spoils them."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def chat(self) -> Path:
        return self.folder / "chat.jsonl"

    def write_weights(self, changes: Mapping[str, Any]) -> None:
        """Write the weights with these arrays instead; None leaves one out."""
        arrays = {**hub_arrays(CONFIG), **changes}
        (self.model / "model.safetensors").write_bytes(
            tensor_file_bytes({name: array for name, array in arrays.items() if array is not None})
        )

    def write_rows(self, *rows: str) -> None:
        """Write these rows behind ten good ones."""
        self.chat.write_text("\n".join([*map(json.dumps, CONVERSATIONS), *rows]) + "\n", encoding="utf-8")

    def settings(self) -> list[str]:
        """Return the settings that put these sources into a recipe."""
        model = {"name": "tiny", "source": {"kind": "directory", "path": str(self.model)}, "chat_format": "chatml"}
        source = {"name": "own", "source": {"kind": "directory", "path": str(self.chat)}}
        data = {"name": "chat", "sources": [source]}
        return ["--set", f"model={json.dumps(model)}", "--set", f"data={json.dumps(data)}"]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    made = Sources(folder=tmp_path)
    made.model.mkdir()
    (made.model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    for name, data in tokenizer_directory().items():
        (made.model / name).write_bytes(data)
    made.write_weights({})
    made.write_rows()
    return made


def truncate(sources: Sources) -> None:
    file = sources.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(sources: Sources) -> None:
    file = sources.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def wrong_shape(sources: Sources) -> None:
    sources.write_weights({"model.layers.1.mlp.up_proj.weight": np.zeros((48, 31), np.float32)})


def unknown_name(sources: Sources) -> None:
    sources.write_weights({"model.layers.0.mlp.extra.weight": np.zeros((2, 2), np.float32)})


def missing_tensor(sources: Sources) -> None:
    sources.write_weights({"model.norm.weight": None})


def larger_tokenizer(sources: Sources) -> None:
    for name, data in tokenizer_directory(vocab_size=400).items():
        (sources.model / name).write_bytes(data)


def missing_file(sources: Sources) -> None:
    (sources.model / "model.safetensors").rename(sources.model / "model-00001-of-00002.safetensors")


def no_weights(sources: Sources) -> None:
    (sources.model / "model.safetensors").unlink()


def unknown_role(sources: Sources) -> None:
    sources.write_rows(json.dumps({"messages": [{"role": "wizard", "content": "w5"}]}))


def empty_conversation(sources: Sources) -> None:
    sources.write_rows(json.dumps({"messages": []}))


def invalid_json(sources: Sources) -> None:
    sources.write_rows('{"messages": [')


SPOILED: dict[str, tuple[Callable[[Sources], None], str, int, tuple[str, ...]]] = {
    "missing model file": (missing_file, "plan", 66, ("model-00002-of-00002.safetensors",)),
    "no weights": (no_weights, "plan", 66, ("expected weights", "config.json")),
    "truncated safetensors": (truncate, "convert", 79, ("model.safetensors",)),
    "safetensors cut in the header": (cut_header, "convert", 79, ("model.safetensors",)),
    "wrong shape": (wrong_shape, "convert", 79, ("model.layers.1.mlp.up_proj.weight", "(48, 32)", "(48, 31)")),
    "unknown tensor": (unknown_name, "convert", 79, ("model.layers.0.mlp.extra.weight",)),
    "missing tensor": (missing_tensor, "convert", 79, ("model.norm.weight",)),
    "tokenizer larger than embedding": (
        larger_tokenizer,
        "convert",
        79,
        ("the tokenizer is larger", "320 rows", "80 such tokens"),
    ),
    "unknown role": (
        unknown_role,
        "pack",
        79,
        ("own: chat.jsonl: row 11: messages[0].role: ", "found 'wizard'; correct"),
    ),
    "empty conversation": (
        empty_conversation,
        "pack",
        79,
        ("own: chat.jsonl: row 11: ", "expected at least one message"),
    ),
    "invalid JSON": (invalid_json, "pack", 79, ("own: chat.jsonl: row 11: ", "JSON", """found '{"messages": [""")),
}
WRITES = {"plan": "sources", "convert": "native", "pack": "packed", "shard": "shards"}


@pytest.mark.parametrize("case", SPOILED)
def test_a_bad_model_or_chat_file(case: str, sources: Sources, tmp_path: Path) -> None:
    spoil, task, exit_code, words = SPOILED[case]
    spoil(sources)
    result = stagecoach(tmp_path, "run", "micro", *sources.settings(), "--retries", "0")
    assert_refused(result, exit_code, task, *words)
    assert not (tmp_path / "work/store" / WRITES[task]).exists(), "something of the failed task is in the store"
    assert not (tmp_path / "work/store/trained").exists()


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("  lr: 1.0e-3", "  learning_rate: 1.0e-3", "train.learning_rate: unknown field"),
        ("  steps: 8", "  steps: many", "train.steps: "),
        ("  warmup_steps: 2", "  warmup_steps: [2]", "train.warmup_steps: "),
        ("  micro_batch_packs: 1", "  micro_batch_pack: 1", "did you mean 'micro_batch_packs'?"),
    ],
)
def test_a_bad_recipe_is_refused_with_file_line_and_field(
    before: str, after: str, sentence: str, tmp_path: Path
) -> None:
    text = MICRO.read_text(encoding="utf-8")
    assert text.count(f"\n{before}\n") == 1
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace(f"\n{before}\n", f"\n{after}\n"), encoding="utf-8")
    line = text.split("\n").index(before) + 1
    for command in ("run", "check"):
        result = stagecoach(tmp_path, command, str(file))
        assert_refused(result, 78, None, f"{file}:{line}: train.", sentence)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train.stepz=3", "--set train.stepz: there is no field 'stepz'; did you mean 'steps'?"),
        ("nonsense=3", "--set nonsense: there is no field 'nonsense'"),
        ("train.steps", "--set train.steps: expected PATH=VALUE"),
        ("data.sources.7.rows=3", "--set data.sources.7.rows: "),
        ("train.layout.tensor_paralel=2", "--set train.layout.tensor_paralel: there is no field"),
    ],
)
def test_a_setting_of_an_unknown_path(setting: str, sentence: str, tmp_path: Path) -> None:
    result = stagecoach(tmp_path, "run", "micro", "--set", setting)
    assert_refused(result, 78, None, sentence)
    assert not (tmp_path / "work").exists()


LAYOUTS: dict[str, tuple[str, ...]] = {
    "tensor_parallel=3": ("expected one of 1, 2 ", "2 key/value heads", "got 3"),
    "tensor_parallel=4": ("expected one of 1, 2 ", "2 key/value heads", "got 4"),
    "pipeline_parallel=3": ("2 layers", "got 3"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_does_not_fit_the_model(layout: str, micro: MicroWork, tmp_path: Path) -> None:
    """Before any work, also where weights and data lie in the store already."""
    setting = ("--set", f"train.layout.{layout}")
    result = stagecoach(tmp_path, "check", "micro", *setting)
    assert_refused(result, 78, None, *LAYOUTS[layout])
    assert_refused(stagecoach(tmp_path, "run", "micro", *setting), 78, "plan", *LAYOUTS[layout])
    assert not (tmp_path / "work/store/sources").exists()

    work = micro.copy_without(tmp_path / "copy", ("shard", "train", "export"))
    assert_refused(work.run(*setting), 78, "plan", *LAYOUTS[layout])
    assert not list(work.folder.glob("store/runs/*/plan.json"))
    assert list((work.folder / "store/shards").iterdir()) == []


def test_an_object_that_changed_after_its_manifest(micro: MicroWork, tmp_path: Path) -> None:
    work = micro.copy_without(tmp_path, ("convert", "export"))
    model = micro.manifest("download-model")
    assert model is not None
    file = tmp_path / "store" / model.objects["model.safetensors"].path
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = work.run()
    assert_refused(result, 79, "convert", "model.safetensors", "sha256")
    assert list((tmp_path / "store/native").iterdir()) == []


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = stagecoach(tmp_path, "run", "micro", "--retries", "0", store=url)
    assert_refused(result, 69, "plan", "s3://bucket/stagecoach", f"cannot reach {url}", "check endpoint")


def test_a_store_that_denies_access(tmp_path: Path) -> None:
    with served(_Denying) as url:
        result = stagecoach(tmp_path, "run", "micro", "--retries", "0", store=url)
        checked = stagecoach(tmp_path, "check", "micro", store=url)
    assert_refused(result, 78, "plan", "s3://bucket/stagecoach", "denie")
    assert_refused(checked, 78, None, "s3://bucket/stagecoach", "denie")


def stagecoach(folder: Path, *arguments: str, store: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command with a work folder below ``folder``, or against an S3 store at that address."""
    places = ["--work", str(folder / "work"), *(["--store", "s3://bucket/stagecoach"] if store else [])]
    environ = child_environ(
        OMP_NUM_THREADS="1",
        STAGECOACH_SCRATCH=str(folder / "scratch"),
        STAGECOACH_S3_ENDPOINT_URL=store or None,
        AWS_ACCESS_KEY_ID="somebody",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_REGION="us-east-1",
    )
    command = [sys.executable, "-m", "stagecoach_workflows", *arguments, *places]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)


def assert_refused(result: subprocess.CompletedProcess[str], exit_code: int, task: str | None, *words: str) -> None:
    """The exit code is right, and standard error holds one sentence with these words: of a task, with its log's place."""
    said = result.stderr.strip().splitlines()
    assert result.returncode == exit_code, result.stdout + result.stderr
    if task is not None:
        assert said[0].startswith(f"{task} failed with exit code {exit_code}: "), result.stderr
        assert said.pop().startswith("log: "), result.stderr
    assert len(said) == 1, result.stderr
    assert [word for word in words if word not in said[0]] == [], said[0]
    assert "Traceback" not in result.stdout


class _Denying(QuietHandler):
    """Answers every request as S3 does for a user without rights."""

    def _deny(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _deny
