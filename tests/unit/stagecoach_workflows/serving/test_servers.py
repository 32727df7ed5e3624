"""Which server is taken, and every word that starts it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.serving.exports import ServedModel, read_model
from stagecoach_workflows.serving.servers import Address, Machine, choose, command, tensor_parallel
from tests.unit.stagecoach_workflows.serving.hub_folder import write_hub_folder

ALL = frozenset({"vllm", "vllm-docker", "transformers", "llama.cpp"})
HERE = Address(host="127.0.0.1", port=8001)


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return read_model(write_hub_folder(tmp_path / "chat"), "chat", "chat")


def machine(*installed: str, gpus: int = 0) -> Machine:
    return Machine(num_gpus=gpus, installed=frozenset(installed))


def words(backend: Any, model: ServedModel, gpus: int = 4, parallel: int | None = None) -> list[str]:
    return command(backend, model, HERE, machine(gpus=gpus), parallel=parallel, image="vllm:1")


def test_vllm(model: ServedModel) -> None:
    folder = str(model.folder)
    assert words("vllm", model) == [
        *("vllm", "serve", folder, "--served-model-name", "chat", "--host", "127.0.0.1", "--port", "8001"),
        *("--tensor-parallel-size", "4", "--generation-config", folder),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]


def test_vllm_in_docker_mounts_the_files_themselves(model: ServedModel, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (model.folder / "config.json").unlink()
    (model.folder / "config.json").symlink_to(tmp_path / "elsewhere")
    found = words("vllm-docker", model)
    assert found[:10] == [
        *("docker", "run", "--rm", "--init", "--gpus", "all", "--ipc", "host", "--entrypoint", "vllm"),
    ]
    assert found[found.index("--publish") + 1] == "127.0.0.1:8001:8000"
    assert f"{tmp_path}/elsewhere:/model/config.json:ro" in found
    assert found[found.index("vllm:1") :][:5] == ["vllm:1", "serve", "/model", "--served-model-name", "chat"]
    assert found[found.index("--port") + 1] == "8000"


def test_transformers_calls_a_model_by_its_folder(model: ServedModel) -> None:
    found = words("transformers", model, gpus=0)
    assert found[0] == sys.executable
    assert found[3:] == ["serve", "chat", "--host", "127.0.0.1", "--port", "8001", "--device", "cpu"]


def test_llama_cpp(model: ServedModel) -> None:
    (model.folder / "model.gguf").touch()
    assert words("llama.cpp", model) == [
        *("llama-server", "--model", f"{model.folder}/model.gguf", "--alias", "chat", "--host", "127.0.0.1"),
        *("--port", "8001", "--jinja", "--chat-template-file", f"{model.folder}/chat_template.jinja"),
        *("--n-gpu-layers", "999"),
    ]


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_the_address_for_clients(host: str, url: str) -> None:
    assert Address(host=host, port=80).url == url


@pytest.mark.parametrize(("gpus", "size"), [(0, 1), (1, 1), (3, 2), (4, 4), (8, 8), (12, 8), (32, 32)])
def test_tensor_parallel_takes_as_many_gpus_as_the_heads_allow(model: ServedModel, gpus: int, size: int) -> None:
    assert tensor_parallel(model, gpus) == size


@pytest.mark.parametrize(
    ("parallel", "sentence"),
    [
        (8, "expected at most the 4 GPUs of this machine, got 8"),
        (3, "splits 32 heads and 8 key and value heads, got 3; 2"),
    ],
)
def test_a_wrong_number_of_gpus(model: ServedModel, parallel: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        words("vllm", model, parallel=parallel)


def test_the_best_server_that_is_there(model: ServedModel) -> None:
    assert choose("auto", machine(*ALL, gpus=1), model) == "vllm"
    assert choose("auto", machine("transformers", "llama.cpp"), model) == "transformers"
    (model.folder / "model.gguf").touch()
    assert choose("auto", machine("llama.cpp"), model) == "llama.cpp"


@pytest.mark.parametrize(
    ("asked", "installed", "sentence"),
    [
        ("auto", (), "expected a model server on this machine, found none"),
        ("auto", ("llama.cpp",), "expected a model server on this machine, found none"),
        ("vllm", (), "--backend vllm: expected the program vllm on PATH and an NVIDIA GPU"),
        ("vllm-docker", (), "--backend vllm-docker: expected the program docker"),
        ("transformers", (), "--backend transformers: expected the packages transformers, torch, accelerate, fastapi"),
        ("llama.cpp", (), "--backend llama.cpp: expected the program llama-server"),
        ("llama.cpp", ("llama.cpp",), "expected one .gguf file in the export; make one with"),
        ("ollama", (), "--backend: expected auto, vllm, vllm-docker, transformers, llama.cpp, got 'ollama'"),
    ],
)
def test_a_server_that_is_not_there(model: ServedModel, asked: str, installed: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        choose(asked, machine(*installed), model)
