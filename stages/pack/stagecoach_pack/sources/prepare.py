"""The filters and repairs that known data sets need, in the order in which their published counts were made.

A chain sees every row twice: raw, before its schema is read (``keep_row``, ``repair_row``), and as a conversation
(``filters``). The report counts the rows that are left after each step.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from stagecoach.recipe.data import DataSource
from stagecoach_pack.conversation import Conversation

Filter = Callable[[Conversation], bool]

_SHARED_NOTICES = ("This chat conversation is shared from", "*This conversation is shared from")
_BING_PREFIX = "Bing Search Result:\n"
_EXECUTE = re.compile(r"<execute>.*?</execute>", re.DOTALL)
_INVALID_ACTION = re.compile(r"I don't understand your input|invalid action", re.IGNORECASE)
_FAILED_EXECUTION = re.compile(r"Traceback \(most recent call last\)|^\w*Error\b|: \w*Error\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Chain:
    """What one kind of data needs.

    Attributes:
        keep_row: Named test of the raw row, or None.
        repair_row: Returns the raw row as it should have been.
        filters: Named tests of the conversation, in order.
    """

    keep_row: tuple[str, Callable[[dict[str, Any]], bool]] | None = None
    repair_row: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    filters: tuple[tuple[str, Filter], ...] = field(default=())

    @property
    def steps(self) -> list[str]:
        """Names of all steps that drop rows, in order."""
        return [name for name, _ in ((self.keep_row,) if self.keep_row else ()) + self.filters]


def chain_of(source: DataSource) -> Chain:
    """Return the chain that a source's ``prepare`` and ``min_turns`` ask for."""
    at_least = (f"at least {source.min_turns} turns", lambda talk: len(talk.messages) >= source.min_turns)
    if source.prepare == "sharegpt":
        return Chain(repair_row=_repair_sharegpt, filters=(at_least, *_SHAREGPT_FILTERS))
    minimum = (at_least,) if source.min_turns else ()
    if source.prepare == "openorca_cot":
        return Chain(
            keep_row=("id begins with cot.", lambda row: str(row.get("id", "")).startswith("cot.")), filters=minimum
        )
    if source.prepare == "codeact":
        return Chain(filters=(*minimum, *_CODEACT_FILTERS))
    return Chain(filters=minimum)


def _repair_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    """Take out the notices of the sharing site, undo its escaped underscores, and let Bing's results be user turns."""
    name = "conversations" if "conversations" in row else "items"
    turns = row.get(name)
    if not isinstance(turns, list):
        return row
    repaired: list[Any] = []
    for turn in turns:
        if not (isinstance(turn, dict) and isinstance(turn.get("value"), str)):
            repaired.append(turn)
            continue
        text = turn["value"].replace("\\_", "_")
        if any(notice in text for notice in _SHARED_NOTICES):
            continue
        if turn.get("from") == "bing":
            repaired.append({**turn, "from": "user", "value": _BING_PREFIX + text})
        else:
            repaired.append({**turn, "value": text})
    return {**row, name: repaired}


def _no_two_in_a_row(role: str) -> Filter:
    def alternates(talk: Conversation) -> bool:
        roles = [message["role"] for message in talk.messages]
        return (role, role) not in pairwise(roles)

    return alternates


def _has(role: str) -> Filter:
    return lambda talk: any(message["role"] == role for message in talk.messages)


_SHAREGPT_FILTERS: tuple[tuple[str, Filter], ...] = (
    ("has a user turn", _has("user")),
    ("has an assistant turn", _has("assistant")),
    ("no turn is 'Cancelled'", lambda talk: all(message["content"] != "Cancelled" for message in talk.messages)),
    ("first turn is not the assistant's", lambda talk: talk.messages[0]["role"] != "assistant"),
    ("no two assistant turns in a row", _no_two_in_a_row("assistant")),
    ("no two user turns in a row", _no_two_in_a_row("user")),
)


def _turn_pairs(talk: Conversation) -> list[tuple[str, str]]:
    """Return (assistant text, following user text) for the trajectory behind the task's statement; the last answer
    has none.
    """
    messages = [message for message in talk.messages if message["role"] != "system"]
    return [
        (first["content"], second["content"])
        for first, second in pairwise(messages)
        if first["role"] == "assistant" and second["role"] == "user"
    ]


def _some_valid_action(talk: Conversation) -> bool:
    pairs = _turn_pairs(talk)
    return not pairs or any(not _INVALID_ACTION.search(observation) for _, observation in pairs)


def _some_working_execution(talk: Conversation) -> bool:
    """Keep a trajectory unless each of its steps proposed a solution or executed code that failed."""
    pairs = _turn_pairs(talk)
    return not pairs or any(
        "<solution>" not in action
        and (_EXECUTE.search(action) is None or _FAILED_EXECUTION.search(observation) is None)
        for action, observation in pairs
    )


def _even_history(talk: Conversation) -> bool:
    return sum(bool(message["role"] != "system") for message in talk.messages) % 2 == 0


_CODEACT_FILTERS: tuple[tuple[str, Filter], ...] = (
    ("not strategyqa", lambda talk: "strategyqa" not in talk.identity.split("/")),
    ("some action is valid", _some_valid_action),
    ("assistant and user turns pair up", _even_history),
    ("some step executes without an error", _some_working_execution),
)
