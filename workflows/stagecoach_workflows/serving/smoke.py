"""One chat with a server over HTTP, compared with the greedy answer of transformers on the same files."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stagecoach.errors import DataError, UnavailableError
from stagecoach_workflows.serving.exports import ServedModel
from stagecoach_workflows.serving.servers import Address

_ANSWER_SECONDS = 600.0


def chat_request(model: ServedModel, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of a greedy chat of one question."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model.name, "messages": messages, "temperature": 0, "max_tokens": max_tokens}


def reference_answer(model: ServedModel, prompt: str, max_tokens: int) -> str:
    """Return transformers' greedy answer, by a process of its own: the server then has the whole memory of the GPUs.

    Raises:
        UnavailableError: The process failed; what it said stands in the terminal.
    """
    with TemporaryDirectory(prefix="smoke-") as scratch:
        prompts, answers = Path(scratch) / "prompts.jsonl", Path(scratch) / "answers.jsonl"
        prompts.write_text(json.dumps({"prompt": prompt}) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "stagecoach_workflows", "generate", str(model.folder), str(prompts)]
        done = subprocess.run([*command, f"--output={answers}", f"--max-tokens={max_tokens}"], check=False)
        if done.returncode:
            raise UnavailableError(
                f"smoke: transformers gave no answer to compare with, exit code {done.returncode}; its own words stand above"
            )
        return str(json.loads(answers.read_text(encoding="utf-8"))["answer"])


def compare(model: ServedModel, address: Address, prompt: str, max_tokens: int, reference: str) -> str:
    """Send one chat and return the answer.

    Raises:
        UnavailableError: The server refuses the request.
        DataError: The answer did not end by itself, or is not ``reference``.
    """
    text, reason = _ask(address, chat_request(model, prompt, max_tokens))
    if reason != "stop":
        raise DataError(
            f"smoke: expected an answer that stops within {max_tokens} tokens, it ended by {reason!r}: {text!r};"
            " give --max-tokens more, or a --prompt that the model knows"
        )
    # a server may strip what stands around an answer
    if text.strip() != reference.strip():
        raise DataError(f"smoke: expected transformers' greedy answer {reference!r}, the server said {text!r}")
    return text


def _ask(address: Address, body: dict[str, Any]) -> tuple[str, str]:
    """Return text and finish reason."""
    request = urllib.request.Request(
        f"{address.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
            choice = json.load(response)["choices"][0]
        return str(choice["message"]["content"] or ""), str(choice["finish_reason"])
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace")
        raise UnavailableError(f"smoke: the server refused a chat with status {error.code}: {said}") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UnavailableError(f"smoke: the server gave no answer: {error}") from error
