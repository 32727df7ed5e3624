"""Gives out the chat set that Stagecoach ships (see build.py), so that a first run needs no network."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Any

DEMO_CHAT = "demo-chat"
FILE_NAME = "chat.jsonl"


def demo_chat_bytes() -> bytes:
    """Return chat.jsonl: one conversation a line, ``{"id", "messages"}`` in the OpenAI form, UTF-8."""
    return resources.files("stagecoach.demo").joinpath(FILE_NAME).read_bytes()


def demo_chat_sha256() -> str:
    """Return the digest of those bytes, as 64 hex digits."""
    return hashlib.sha256(demo_chat_bytes()).hexdigest()


def demo_conversations() -> list[dict[str, Any]]:
    """Return the conversations, in the order of the file."""
    return [json.loads(line) for line in demo_chat_bytes().splitlines()]
