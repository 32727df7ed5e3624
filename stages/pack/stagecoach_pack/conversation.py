"""The one form that every chat row is brought into: a list of messages and a list of tools, in OpenAI's spelling.

    {"role": "assistant", "content": "Let me look.", "tool_calls": [{"type": "function", "function": {"name": ..,
    "arguments": {..}}}]}

A plain dict of plain JSON values, because templates, hashing and the spool file all want exactly that.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring  # what the encoder below calls for a text
from typing import Any

from stagecoach_pack.problems import RowProblem

Message = dict[str, Any]
"""``role`` and ``content`` (text) always; ``tool_calls`` and ``weight`` (0 or 1) where the row has them."""

HASH_BYTES = 16
MAX_NESTING = 100
"""Levels of calls and tools; far below what recursive readers and templates can stand."""
_SIDE_BYTES = 8
_ASCII_SPACE = b"\t\n\v\f\r\x1c\x1d\x1e\x1f"
_LOWER_AND_SPACE = bytes(32 if code in _ASCII_SPACE else code for code in range(256)).lower()
"""What ``bytes.translate`` needs to lower ASCII letters and make a blank of every ASCII space in one go."""
_OTHER_SPACE = "\x85\u1680\u2028\u2029"
"""White space beyond ASCII that NFKC leaves as it is; it makes blanks of the rest."""
_IN_ORDER, _SORTED = (
    json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys, allow_nan=False)
    for sort_keys in (False, True)
)


@dataclass(slots=True)
class Conversation:
    """One normalised chat row."""

    messages: list[Message]
    tools: list[Any] | None = None
    identity: str = ""
    """The row's own id; empty where it has none."""

    @property
    def roles(self) -> list[str]:
        """Role of each message."""
        return [message["role"] for message in self.messages]

    def to_json(self) -> bytes:
        """Return compact UTF-8 JSON ``[messages, tools]`` with the order of the keys kept, which templates write down.

        Raises:
            RowProblem: As ``digest``, which looks more closely.
        """
        return _encoded(_IN_ORDER, [self.messages, self.tools])

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for equal messages and tools; weights and the row's id do not count.

        Raises:
            RowProblem: Some text holds a lone surrogate, and so has no UTF-8 form; or a tool holds what JSON cannot, or
                is nested without end.
        """
        messages = self.messages
        if not self.tools and is_role_and_text(messages):
            text = f"[[{','.join([_quoted(message) for message in messages])}],null]"
            hashed = _encoded(None, text)
        else:
            if _too_deep(self):
                raise RowProblem("nested too deeply", "", f"calls and tools of at most {MAX_NESTING} levels", "more")
            messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
            hashed = _encoded(_SORTED, [messages, self.tools])
        return hashlib.blake2b(hashed, digest_size=HASH_BYTES).digest()

    def side(self) -> int:
        """Return a number below 2**64 that is equal for conversations which say the same; it decides who is held out.

        Letter case, spacing, the Unicode form of a character, the system message and the tools do not count, so that
        no near copy of a held-out conversation is trained on.
        """
        told = [message for message in self.messages if message["role"] != "system"] or self.messages
        text = " \0 ".join([f"{message['role']} {message['content']}" for message in told])
        calls = [] if is_role_and_text(told) else [message["tool_calls"] for message in told if "tool_calls" in message]
        plain = plain_text(f"{text} \0 {calls}" if calls else text)
        return int.from_bytes(hashlib.blake2b(plain, digest_size=_SIDE_BYTES).digest(), "big")


def conversation_from_json(data: bytes) -> Conversation:
    """Return the conversation that ``to_json`` wrote."""
    messages, tools = json.loads(data.decode("utf-8"))
    return Conversation(messages, tools)


def is_role_and_text(messages: Sequence[Message]) -> bool:
    """Tell whether no message has calls or a weight, as in most conversations; cheap."""
    return sum(map(len, messages)) == 2 * len(messages)


def _quoted(message: Message) -> str:
    """Return what ``_SORTED`` makes of a message of role and text, in half the time."""
    return f'{{"content":{encode_basestring(message["content"])},"role":{encode_basestring(message["role"])}}}'


def _encoded(encoder: json.JSONEncoder | None, value: Any) -> bytes:
    """Return a value as UTF-8 JSON; without an encoder it is a text that is JSON already."""
    try:
        return (encoder.encode(value) if encoder else str(value)).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem("lone surrogate", "", "text that has a UTF-8 form", error.object[error.start]) from error
    except (TypeError, ValueError) as error:  # a date in parquet, NaN
        raise RowProblem("not JSON", "", "calls and tools of JSON values", str(error)) from error


def _too_deep(talk: Conversation) -> bool:
    level: list[Any] = [talk.tools, *(message.get("tool_calls") for message in talk.messages)]
    for _ in range(MAX_NESTING):
        inside = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list))
        ]
        level = [item for values in inside for item in values]
        if not level:
            return False
    return True


def plain_text(text: str) -> bytes:
    """Return text as UTF-8 without what two copies of it may differ in: case, spacing, the form of a character."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
        for space in _OTHER_SPACE:
            text = text.replace(space, " ")
    plain = text.encode("utf-8").translate(_LOWER_AND_SPACE)
    while b"  " in plain:
        plain = plain.replace(b"  ", b" ")
    return plain.strip(b" ")
