"""The command lines of the model servers: vLLM (here or by Docker), ``transformers serve`` and llama.cpp.

All of them speak the OpenAI-compatible API under ``/v1`` and answer ``/health`` once the model is loaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from stagecoach.errors import ConfigError
from stagecoach_workflows.serving.exports import ServedModel

Backend = Literal["vllm", "vllm-docker", "transformers", "llama.cpp"]
VLLM_IMAGE = "vllm/vllm-openai:v0.11.0"
_IN_CONTAINER = "/model"
_TRANSFORMERS_NEEDS = ("transformers", "torch", "accelerate", "fastapi", "uvicorn", "openai")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Its address for a client on this machine."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.bracketed_host}:{self.port}"

    @property
    def bracketed_host(self) -> str:
        """The host as it stands before a port: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What this machine offers to a server."""

    num_gpus: int
    installed: frozenset[str]
    """Backends that can be started."""

    @classmethod
    def look(cls) -> Machine:
        """Look for programs, packages and GPUs; no package is imported."""
        gpus = num_gpus()
        found = {
            "vllm": gpus > 0 and shutil.which("vllm") is not None,
            "vllm-docker": gpus > 0 and shutil.which("docker") is not None,
            "transformers": not missing_packages(),
            "llama.cpp": shutil.which("llama-server") is not None,
        }
        return cls(num_gpus=gpus, installed=frozenset(name for name, there in found.items() if there))


def num_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine; 0 without a driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def missing_packages() -> list[str]:
    """Return what ``transformers serve`` needs and this Python lacks."""
    return [package for package in _TRANSFORMERS_NEEDS if find_spec(package) is None]


def choose(asked: str, machine: Machine, model: ServedModel) -> Backend:
    """Return the backend asked for, or the best one that is there.

    Raises:
        ConfigError: It is not there, or none is; or the export has no file that llama.cpp reads.
    """
    if asked == "auto":
        order: tuple[Backend, ...] = ("vllm", "vllm-docker", "transformers", "llama.cpp")
        for backend in order:
            if backend in machine.installed and (backend != "llama.cpp" or gguf_file(model)):
                return backend
        raise ConfigError(
            "serve: expected a model server on this machine, found none: install vllm (with a GPU), Docker (with a GPU),"
            f" llama.cpp's llama-server (with a .gguf file), or {', '.join(missing_packages())} beside this Python"
        )
    known: Mapping[str, tuple[Backend, str]] = {
        "vllm": ("vllm", "the program vllm on PATH and an NVIDIA GPU; pip install vllm into an environment of its own"),
        "vllm-docker": ("vllm-docker", "the program docker on PATH and an NVIDIA GPU"),
        "transformers": ("transformers", f"the packages {', '.join(_TRANSFORMERS_NEEDS)} beside this Python"),
        "llama.cpp": ("llama.cpp", "the program llama-server on PATH"),
    }
    if asked not in known:
        raise ConfigError(f"--backend: expected auto, {', '.join(known)}, got {asked!r}")
    backend, needs = known[asked]
    if backend not in machine.installed:
        raise ConfigError(f"--backend {backend}: expected {needs}")
    if backend == "llama.cpp" and gguf_file(model) is None:
        raise ConfigError(
            "--backend llama.cpp: expected one .gguf file in the export; make one with llama.cpp's"
            " convert_hf_to_gguf.py EXPORT --outfile EXPORT/model.gguf"
        )
    return backend


def gguf_file(model: ServedModel) -> Path | None:
    """Return the export's GGUF file; None unless there is exactly one."""
    found = list(model.folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def tensor_parallel(model: ServedModel, gpus: int) -> int:
    """Return the largest number of GPUs that the heads can be split over: it divides the query heads, and divides or
    is a multiple of the key and value heads.
    """
    for size in range(min(gpus, model.num_heads), 1, -1):
        if model.num_heads % size == 0 and (model.num_kv_heads % size == 0 or size % model.num_kv_heads == 0):
            return size
    return 1


def command(
    backend: Backend, model: ServedModel, address: Address, machine: Machine, *, parallel: int | None, image: str
) -> list[str]:
    """Return the words that start a server; the working folder is the one that holds ``model.folder``.

    Raises:
        ConfigError: More GPUs are asked for than there are, or than the heads can be split over.
    """
    builders: Mapping[Backend, Callable[[], list[str]]] = {
        "vllm": lambda: ["vllm", "serve", *_vllm(model, address, str(model.folder), _gpus(model, machine, parallel))],
        "vllm-docker": lambda: _docker(model, address, _gpus(model, machine, parallel), image),
        "transformers": lambda: _transformers(model, address, machine),
        "llama.cpp": lambda: _llama_cpp(model, address, machine),
    }
    return builders[backend]()


def _gpus(model: ServedModel, machine: Machine, asked: int | None) -> int:
    if asked is None:
        return tensor_parallel(model, machine.num_gpus)
    if asked > machine.num_gpus:
        raise ConfigError(
            f"--tensor-parallel: expected at most the {machine.num_gpus} GPUs of this machine, got {asked}"
        )
    if tensor_parallel(model, asked) != asked:
        raise ConfigError(
            f"--tensor-parallel: expected a number that splits {model.num_heads} heads and {model.num_kv_heads} key and"
            f" value heads, got {asked}; {tensor_parallel(model, asked)} does"
        )
    return asked


def _vllm(model: ServedModel, address: Address, folder: str, gpus: int) -> list[str]:
    """Stop tokens come from the export's own generation_config.json; ``vllm`` would take it anyway, a default may change."""
    words = [folder, "--served-model-name", model.name, "--host", address.host, "--port", str(address.port)]
    words += ["--tensor-parallel-size", str(gpus), "--generation-config", folder]
    return [*words, *(["--enable-auto-tool-choice", "--tool-call-parser", "hermes"] if model.speaks_tools else [])]


def _docker(model: ServedModel, address: Address, gpus: int, image: str) -> list[str]:
    # --init hands SIGTERM on; the program is named because releases differ in what their image starts
    words = ["docker", "run", "--rm", "--init", "--gpus", "all", "--ipc", "host", "--entrypoint", "vllm"]
    words += ["--publish", f"{address.bracketed_host}:{address.port}:8000", "--env", "HF_HUB_OFFLINE=1"]
    for file in sorted(path for path in model.folder.rglob("*") if path.is_file()):
        # the folder holds links, which lead nowhere in a container
        words += ["--volume", f"{file.resolve()}:{_IN_CONTAINER}/{file.relative_to(model.folder)}:ro"]
    inside = Address(host="0.0.0.0", port=8000)
    return [*words, image, "serve", *_vllm(model, inside, _IN_CONTAINER, gpus)]


def _transformers(model: ServedModel, address: Address, machine: Machine) -> list[str]:
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    device = "cuda:0" if machine.num_gpus else "cpu"
    # it names a model after its folder, as written here, and takes requests for that name alone
    return [*program, model.name, "--host", address.host, "--port", str(address.port), "--device", device]


def _llama_cpp(model: ServedModel, address: Address, machine: Machine) -> list[str]:
    words = ["llama-server", "--model", str(gguf_file(model)), "--alias", model.name]
    words += ["--host", address.host, "--port", str(address.port), "--jinja"]
    template = model.folder / "chat_template.jinja"
    words += ["--chat-template-file", str(template)] if template.is_file() else []
    return [*words, *(["--n-gpu-layers", "999"] if machine.num_gpus else [])]
