"""A trained export served for real: the official client, streaming, and stopping; chat and prompt files beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagecoach.demo.chat import demo_conversations
from stagecoach.settings import child_environ
from tests.architecture.source_tree import ROOT
from tests.micro_run import RUN, MicroWork

pytestmark = pytest.mark.serve

_TRAINING_SECONDS = 900  # one minute on a machine with nothing else to do
_READY_SECONDS = 300


def known_chats() -> list[tuple[str, str]]:
    """Return questions of the shipped chat set that the model learns by heart, with their answers."""
    chats = [chat["messages"] for chat in demo_conversations()]
    plain = [messages for messages in chats if [message["role"] for message in messages] == ["user", "assistant"]]
    return [(messages[0]["content"], messages[1]["content"]) for messages in plain if messages[1].get("content")]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> MicroWork:
    """A work folder in which tiny-cpu has run to its end."""
    work = MicroWork(tmp_path_factory.mktemp("serve"))
    done = work.run(recipe="tiny-cpu", timeout_seconds=_TRAINING_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return work


@pytest.fixture(scope="session")
def export(trained: MicroWork) -> str:
    """The address of the export."""
    return str(trained.folder / "store" / trained.plan(RUN).task("export").output)


@dataclass(frozen=True, slots=True)
class Server:
    """A running ``stagecoach serve``."""

    url: str
    process: subprocess.Popen[str]
    said: Path
    """What it printed."""

    def client(self) -> Any:
        """Return the official client."""
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def stagecoach(*arguments: str) -> list[str]:
    """Return a command line."""
    return [sys.executable, "-m", "stagecoach_workflows", *arguments]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(export: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The export, served by transformers under the name assistant."""
    port, said = free_port(), tmp_path_factory.mktemp("server") / "said"
    command = stagecoach("serve", export, "--backend", "transformers", "--name", "assistant", "--port", str(port))
    command += ["--prompt", known_chats()[0][0]]
    environ = child_environ(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    with open(said, "w") as stream:
        process = subprocess.Popen(command, text=True, stdout=stream, env=environ)
    url, limit = f"http://127.0.0.1:{port}", time.monotonic() + _READY_SECONDS
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < limit, "the server did not come up"
        if "curl " in said.read_text():
            break
        time.sleep(0.3)
    yield Server(url, process, said)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/health", timeout=2)


def test_the_official_client_gets_answers_that_stop(server: Server) -> None:
    right = 0
    chats = known_chats()[:10]
    for question, answer in chats:
        reply = server.client().chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=200
        )
        assert reply.choices[0].finish_reason == "stop", reply
        assert "<|im_end|>" not in reply.choices[0].message.content
        right += reply.choices[0].message.content == answer
    assert right >= 8, f"{right} of {len(chats)} answers that it was trained on"


def test_the_curl_line_that_serve_prints_is_answered(server: Server) -> None:
    [line] = [line for line in server.said.read_text().splitlines() if line.startswith("curl ")]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    [choice] = json.loads(done.stdout)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (known_chats()[0][1], "stop")


def test_a_stream_is_the_same_answer_in_pieces(server: Server) -> None:
    question, _ = known_chats()[0]
    asked: dict[str, Any] = {
        "model": "assistant",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 200,
    }
    whole = server.client().chat.completions.create(**asked).choices[0].message.content
    chunks = [
        chunk.choices[0] for chunk in server.client().chat.completions.create(**asked, stream=True) if chunk.choices
    ]
    pieces = [choice.delta.content for choice in chunks if choice.delta.content]
    assert len(pieces) > 1
    assert "".join(pieces) == whole
    assert [choice.finish_reason for choice in chunks if choice.finish_reason] == ["stop"]


def test_the_model_is_listed_under_its_name_alone(server: Server) -> None:
    from openai import BadRequestError

    assert [model.id for model in server.client().models.list()] == ["assistant"]
    with pytest.raises(BadRequestError):
        server.client().chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])


def call(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Call ``stagecoach`` to its end."""
    environ = child_environ(OMP_NUM_THREADS="1")
    return subprocess.run(
        stagecoach(*arguments), input=given, capture_output=True, text=True, env=environ, timeout=300, check=False
    )


def test_smoke(export: str) -> None:
    question, answer = known_chats()[0]
    done = call(
        "serve", export, "--backend", "transformers", "--port", str(free_port()), "--smoke", "--prompt", question
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "curl http://127.0.0.1:" in done.stdout
    assert f"it stopped, and said what transformers says: {answer!r}" in done.stdout


def test_smoke_fails_an_answer_that_does_not_stop(export: str) -> None:
    question, _ = known_chats()[0]
    arguments = ("--backend", "transformers", "--port", str(free_port()), "--smoke", "--max-tokens", "2")
    done = call("serve", export, *arguments, "--prompt", question)
    assert done.returncode == 79, done.stdout + done.stderr
    assert "expected an answer that stops within 2 tokens, it ended by 'length'" in done.stderr


@pytest.fixture
def llama_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``llama-server`` on PATH; return the folder of llama.cpp's packages."""
    packages = ROOT / "build/readers"
    program = tmp_path / "bin/llama-server"
    program.parent.mkdir()
    source = Path(__file__).with_name("llama_server.py")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} {source} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return packages


def test_smoke_with_llama_cpp(export: str, llama_server: Path, tmp_path: Path) -> None:
    """As docs/howto/serve.md says: the files in a folder, llama.cpp's own script, its own server."""
    question, answer = known_chats()[0]
    folder = tmp_path / "exported"
    [files] = Path(export).glob("try-*")
    shutil.copytree(files, folder)
    command = [sys.executable, str(llama_server / "convert_hf_to_gguf.py"), str(folder)]
    environ = child_environ(PYTHONPATH=str(llama_server), HF_HUB_OFFLINE="1")
    subprocess.run([*command, "--outfile", str(folder / "model.gguf")], env=environ, check=True)
    done = call(
        "serve", str(folder), "--backend", "llama.cpp", "--port", str(free_port()), "--smoke", "--prompt", question
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"it stopped, and said what transformers says: {answer!r}" in done.stdout


def test_chat(export: str) -> None:
    (first, answer), (second, other) = known_chats()[:2]
    done = call("chat", export, given=f"{first}\n\n{second}\n")
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout
    assert other in done.stdout, "an empty line begins anew, so the second is no second turn"


def test_a_prompt_file(export: str, tmp_path: Path) -> None:
    chats = known_chats()[:5]
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": question, "id": i}) + "\n" for i, (question, _) in enumerate(chats))
    )
    done = call("generate", export, str(prompts), "--output", str(answers))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(5))
    assert all(row["stopped"] for row in rows)
    assert sum(row["answer"] == answer for row, (_, answer) in zip(rows, chats, strict=True)) >= 4
