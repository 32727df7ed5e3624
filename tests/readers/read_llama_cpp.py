"""Answers with llama.cpp: its converter to GGUF, its tokenizer, its template engine, its kernels, over its own server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


def serve(gguf: Path) -> Any:
    """Start llama.cpp's server on a free port."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.port = 0
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # fp16 by default
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(parameters)


def ask(server: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post JSON to the server."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def main() -> None:
    """Answer the request of standard input on standard output."""
    request: dict[str, Any] = json.load(sys.stdin)
    found: dict[str, Any] = {"version": str(xllamacpp.BUILD_INFO), "prompts": [], "generated": []}
    with tempfile.TemporaryDirectory() as name:
        gguf = Path(name, "model.gguf")
        options = ["--outtype", "f32", "--outfile", str(gguf)]
        command = [sys.executable, "-m", "convert_hf_to_gguf", request["folder"], *options]
        subprocess.run(command, check=True, stdout=sys.stderr)
        server = serve(gguf)
        for chat in request["chats"]:
            text = ask(server, "/apply-template", {"messages": chat})["prompt"]
            tokens = ask(server, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
            body = {"messages": chat, "max_tokens": request["max_tokens"], "temperature": 0, "top_k": 1}
            answer = ask(server, "/v1/chat/completions", {**body, "verbose": True, "return_tokens": True})
            found["prompts"].append(tokens)
            found["generated"].append(answer["__verbose"]["tokens"])
        json.dump(found, sys.stdout)
        sys.stdout.flush()
        del server


if __name__ == "__main__":
    main()
