"""An answer that does not stop, is another one, or does not come is a sentence with an exit code of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import DataError, UnavailableError
from stagecoach_workflows.serving.exports import ServedModel, read_model
from stagecoach_workflows.serving.servers import Address
from stagecoach_workflows.serving.smoke import compare, reference_answer
from tests.loopback import QuietHandler, served
from tests.unit.stagecoach_workflows.serving.hub_folder import write_hub_folder


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return read_model(write_hub_folder(tmp_path / "chat"), "chat", "chat")


@contextmanager
def server(status: int, body: Any) -> Iterator[tuple[Address, list[dict[str, Any]]]]:
    """A server that answers every chat in the same way; what it was asked is kept."""
    asked: list[dict[str, Any]] = []

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with served(Handler) as address:
        yield Address(host="127.0.0.1", port=int(address.rsplit(":", 1)[1])), asked


def said(text: str, reason: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


def test_the_same_answer_that_stops(model: ServedModel) -> None:
    with server(200, said(" Hello. ", "stop")) as (address, asked):
        assert compare(model, address, "Hi", 9, "Hello.") == " Hello. "
    message = {"role": "user", "content": "Hi"}
    assert asked == [{"model": "chat", "messages": [message], "temperature": 0, "max_tokens": 9}]


@pytest.mark.parametrize(
    ("status", "body", "error", "sentence"),
    [
        (200, said("Hello", "length"), DataError, "stops within 9 tokens, it ended by 'length': 'Hello'"),
        (200, said("Good day.", "stop"), DataError, r"greedy answer 'Hello\.', the server said 'Good day\.'"),
        (404, {"error": "no such model"}, UnavailableError, "refused a chat with status 404: .*no such model"),
        (200, {"choices": []}, UnavailableError, "the server gave no answer"),
        (200, [], UnavailableError, "the server gave no answer"),
    ],
)
def test_what_is_no_proof(model: ServedModel, status: int, body: Any, error: type[Exception], sentence: str) -> None:
    with server(status, body) as (address, _), pytest.raises(error, match=sentence):
        compare(model, address, "Hi", 9, "Hello.")


def test_nothing_to_compare_with(model: ServedModel) -> None:
    """The folder holds no weights."""
    with pytest.raises(UnavailableError, match="transformers gave no answer to compare with, exit code"):
        reference_answer(model, "Hi", 9)
