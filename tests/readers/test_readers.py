"""What others make of an export: two lines of transformers, CTranslate2 and llama.cpp, each in a process of its own.

Every reader gets the messages alone, and makes of them ids, tokens and an end with what lies in the directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.demo.chat import demo_conversations
from stagecoach.formats.tokenizer import TOKENIZER_FILES, build_final_tokenizer
from stagecoach.outputs import Input, open_input
from stagecoach.storage.local import LocalStore
from tests.micro_run import RUN, MicroWork
from tests.real.smollm2 import write_hub_directory
from tests.tiny_models import CONFIGS, Pipeline, hub_directory, tokenizer_directory
from tests.unit.stagecoach_pack.chat_tokenizers import final_files

ROOT = Path(__file__).parents[2]
READERS = {
    "transformers 5": ("read_transformers.py", None),
    "transformers 4": ("read_transformers.py", "readers-transformers4"),
    "CTranslate2": ("read_ctranslate2.py", "readers"),
    "llama.cpp": ("read_llama_cpp.py", "readers"),
}
"""Reader -> its program, and the folder of ``build`` that holds its packages; None: the development environment."""
OTHERS = [name for name in READERS if name != "transformers 5"]
MAX_TOKENS = 64
WAIT_SECONDS = 3600  # for one reader or one training; only a machine that hangs takes so long
REAL_QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Name three prime numbers.",
    "Explain gravity to a child.",
    "What is 12 times 12?",
    "List the planets.",
    "Translate 'good morning' to Spanish.",
    "Who wrote Hamlet?",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Tell me a short joke.",
    "How many days has a leap year?",
    "Describe the sea in one sentence.",
    "What is photosynthesis?",
    "Write a Python function that adds two numbers.",
    "What is the largest ocean?",
    "Summarise the story of Cinderella.",
    "How do bees make honey?",
    "Say hello in five languages.",
)

pytestmark = pytest.mark.readers


def read(reader: str, **request: Any) -> dict[str, Any]:
    """Run a reader and return what it found."""
    program, packages = READERS[reader]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if packages is not None:
        environ["PYTHONPATH"] = str(ROOT / "build" / packages)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(program))],
        input=json.dumps(request),
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def folder_of(files: Input, folder: Path) -> Path:
    """Put an output's files under their names into a folder."""
    folder.mkdir(parents=True)
    for name in files.names():
        (folder / name).write_bytes(files.read_bytes(name))
    return folder


def stop_ids(folder: Path) -> list[int]:
    """Return the ids that end an answer, as the directory lists them."""
    listed = json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"]
    return listed if isinstance(listed, list) else [listed]


class Asked:
    """A directory, 20 chats, and the answers of transformers 5."""

    def __init__(self, folder: Path, chats: list[Any]) -> None:
        """Ask transformers 5."""
        self.folder = folder
        self.chats = chats
        self.expected = self.read("transformers 5")

    def read(self, reader: str) -> dict[str, Any]:
        """Ask a reader."""
        return read(reader, folder=str(self.folder), chats=self.chats, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The model of ``tiny-cpu``, without a window, as llama.cpp knows none for Mistral; 20 conversations it has learnt."""
    work = MicroWork(tmp_path_factory.mktemp("trained"))
    command = work.command("--set", "model.source.sliding_window=null", recipe="tiny-cpu")
    done = subprocess.run(command, env=work.environment(), capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    export = open_input(work.store, work.plan(RUN).task("export").output, work.folder / "in")
    chats = [conversation["messages"][:-1] for conversation in demo_conversations()]
    plain = [chat for chat in chats if all(message["role"] in ("user", "assistant") for message in chat)]
    plain = [chat for chat in plain if all("tool_calls" not in message for message in chat)]
    return Asked(folder_of(export, work.folder / "export"), plain[:: len(plain) // 20][:20])


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """SmolLM2-135M, through convert, shard TP 3 x PP 4 and export in fp32, its own weights deleted before export."""
    root = tmp_path_factory.mktemp("real")
    write_hub_directory(root / "source")
    pipeline = Pipeline(LocalStore(root / "store"), root)
    model = pipeline.finish("sources/models/m-1/", {p.name: p.read_bytes() for p in (root / "source").iterdir()})
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", build_final_tokenizer(root / "source", "tokenizer"))
    native = pipeline.convert(model, tokenizer)
    trained = pipeline.checkpoint_of(pipeline.shard(native, 3, 4))
    pipeline.store.delete([model.entry("model.safetensors").path, native.entry("model.safetensors").path])
    folder = folder_of(pipeline.export(trained, native, tokenizer, dtype="fp32"), root / "export")
    yield Asked(folder, [[{"role": "user", "content": question}] for question in REAL_QUESTIONS])


@pytest.mark.parametrize("reader", OTHERS)
@pytest.mark.parametrize("model", ["trained", "real"])
def test_the_same_ids_and_the_same_greedy_tokens(model: str, reader: str, request: pytest.FixtureRequest) -> None:
    asked: Asked = request.getfixturevalue(model)
    found = asked.read(reader)
    print(f"{reader} {found['version']}: {sum(map(len, found['generated']))} tokens")
    assert len(found["prompts"]) == 20
    assert found["prompts"] == asked.expected["prompts"]
    assert found["generated"] == asked.expected["generated"]


def test_every_trained_answer_ends_by_itself(trained: Asked) -> None:
    ends = stop_ids(trained.folder)
    assert [tokens[-1] in ends for tokens in trained.expected["generated"]] == [True] * 20
    assert max(map(len, trained.expected["generated"])) < MAX_TOKENS


def test_real_answers_end_or_go_on_for_64_tokens(real: Asked) -> None:
    ends = stop_ids(real.folder)
    ended = [tokens[-1] in ends for tokens in real.expected["generated"]]
    assert ended[0]  # the capital of France
    assert all(end or len(tokens) == MAX_TOKENS for end, tokens in zip(ended, real.expected["generated"], strict=True))


@pytest.mark.parametrize("reader", ["transformers 5", "transformers 4"])
def test_fp32_logits_are_those_of_the_source_for_every_family(reader: str, tmp_path: Path) -> None:
    pairs = []
    for family, config in CONFIGS.items():
        if family == "mistral-v5-spelling" and reader == "transformers 4":
            # 4.x takes a base spelt so for one with theta 10,000; the export has both spellings
            old = {key: value for key, value in config.items() if key != "rope_parameters"}
            source_config = {**old, "rope_theta": config["rope_parameters"]["rope_theta"]}
        else:
            source_config = config
        pipeline = Pipeline(LocalStore(tmp_path / family / "store"), tmp_path / family)
        model = pipeline.finish("sources/models/m-1/", hub_directory(config))
        source = folder_of(model, tmp_path / family / "source")
        (source / "config.json").write_text(json.dumps(source_config))
        tokenizer = pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
        native = pipeline.convert(model, tokenizer)
        trained = pipeline.checkpoint_of(pipeline.shard(native, 2, 3))
        pipeline.store.delete([model.entry("model.safetensors").path])
        export = folder_of(pipeline.export(trained, native, tokenizer, dtype="fp32"), tmp_path / family / "export")
        pairs.append((str(source), str(export)))
    found = read(reader, pairs=pairs, ids=list(range(5, 65)))
    differences = dict(zip(CONFIGS, found["differences"], strict=True))
    print(found["version"], differences)
    assert found["version"].startswith(reader.split()[1])
    assert max(differences.values()) <= 1e-5


@pytest.mark.parametrize("reader", READERS)
def test_the_golden_chat_ids_of_mistral(reader: str, tmp_path: Path) -> None:
    config = {**CONFIGS["mistral"], "vocab_size": 32_000, "sliding_window": None}
    files = {name: data for name, data in final_files("mistral").items() if name in TOKENIZER_FILES}
    pipeline = Pipeline(LocalStore(tmp_path / "store"), tmp_path)
    model = pipeline.finish("sources/models/m-1/", hub_directory(config))
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", files)
    native = pipeline.convert(model, tokenizer)
    trained = pipeline.checkpoint_of(pipeline.shard(native, 1, 1))
    export = folder_of(pipeline.export(trained, native, tokenizer, dtype="fp32"), tmp_path / "export")
    chat = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hi"}]
    found = read(reader, folder=str(export), chats=[chat], max_tokens=2)
    system = [32000, 1587, 13, 1976, 460, 10865, 28723, 32001, 28705, 13]
    user = [32000, 2188, 13, 23809, 32001, 28705, 13]
    assert found["prompts"] == [[1, *system, *user, 32000, 13892, 13]]
    assert np.shape(found["generated"])[0] == 1
