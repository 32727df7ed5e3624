"""Reads single messages, tool calls and tool lists in every spelling that OpenAI-like and ShareGPT-like files use."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from stagecoach_pack.conversation import Message
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources import strict_json

ROLE_ALIASES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": "tool_call",
    "tool_call": "tool_call",
}
"""Name in a file -> role here; ``tool_call`` is an assistant message that is nothing but a call."""

_KNOWN_FIELDS = frozenset({"role", "content", "tool_calls", "function_call", "weight"})
_CALL_AS_TEXT_FIELDS = frozenset({"role", "content", "weight"})
_PART_FIELDS = frozenset({"type", "text"})
_CALL_FIELDS = frozenset({"type", "function", "index"})
_FUNCTION_FIELDS = frozenset({"name", "arguments", "parameters"})
_FLAT_CALL_FIELDS = _CALL_FIELDS | _FUNCTION_FIELDS
_DROPPED_FIELDS = frozenset({"name", "tool_call_id", "id"})
"""Fields that the rendered text has no place for."""


def read_message(turn: Any, field: str, role_of: Callable[[Any, str], str], ignored: frozenset[str]) -> Message:
    """Return one OpenAI-style message in normal form.

    Args:
        turn: The decoded message.
        field: Its place in the row, for problems.
        role_of: Maps a file's role name to ours, or raises.
        ignored: Names of fields that may be dropped.

    Raises:
        RowProblem: It is none, or holds a field that would be lost.
    """
    if not isinstance(turn, dict):
        raise RowProblem("wrong type", field, "an object {role, content}", turn)
    role = role_of(turn.get("role"), f"{field}.role")
    check_extra_fields(turn, field, _KNOWN_FIELDS, ignored)
    if role == "tool_call":
        check_extra_fields(turn, field, _CALL_AS_TEXT_FIELDS, ignored)
        return with_weight(tool_call_message(turn.get("content"), f"{field}.content", ignored), turn, field)
    calls = _tool_calls(turn, field, ignored)
    message: Message = {
        "role": role,
        "content": _content(turn.get("content"), f"{field}.content", ignored, may_be_null=bool(calls)),
    }
    if calls:
        if role != "assistant":
            raise RowProblem(
                "misplaced tool call", f"{field}.tool_calls", "tool calls in assistant messages only", role
            )
        message["tool_calls"] = calls
    return with_weight(message, turn, field)


def with_weight(message: Message, turn: dict[str, Any], field: str) -> Message:
    """Return the message with the weight that its turn has, if any.

    Raises:
        RowProblem: The weight is neither 0 nor 1.
    """
    weight = turn.get("weight")
    if weight is not None:
        if not (isinstance(weight, (int, float)) and weight in (0, 1)):
            raise RowProblem("wrong weight", f"{field}.weight", "0 or 1", weight)
        message["weight"] = int(weight)
    return message


def check_extra_fields(turn: dict[str, Any], field: str, known: frozenset[str], ignored: frozenset[str]) -> None:
    """Refuse a message, a part of one or a call with a field whose value would be lost.

    Args:
        turn: The decoded object.
        field: Its place in the row, for problems.
        known: Fields that are read.
        ignored: Fields that the recipe lets be dropped.

    Raises:
        RowProblem: There is another field with a value.
    """
    if turn.keys() <= known:  # nearly always, a million times
        return
    for name, value in turn.items():
        if name not in known | ignored | _DROPPED_FIELDS and value not in (None, [], ""):
            raise RowProblem(
                "unknown field",
                f"{field}.{name}",
                "an object without it (list it under `ignore_fields` to drop it)",
                value,
            )


def _content(value: Any, field: str, ignored: frozenset[str], *, may_be_null: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and may_be_null:
        return ""
    if isinstance(value, list):
        parts = []
        for index, part in enumerate(value):
            text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
            if not isinstance(text, str):
                raise RowProblem("content is not text", f"{field}[{index}]", "a content part of type text", part)
            if isinstance(part, dict):
                check_extra_fields(part, f"{field}[{index}]", _PART_FIELDS, ignored)
            parts.append(text)
        return "".join(parts)
    raise RowProblem(
        "wrong type",
        field,
        "text or a list of text parts" + ("" if value is not None else " (null only beside tool calls)"),
        value,
    )


def _tool_calls(turn: dict[str, Any], field: str, ignored: frozenset[str]) -> list[dict[str, Any]]:
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RowProblem("wrong type", f"{field}.tool_calls", "a list", calls)
    if turn.get("function_call") is not None:
        calls = [*calls, turn["function_call"]]
    return [read_tool_call(call, f"{field}.tool_calls[{index}]", ignored) for index, call in enumerate(calls)]


def read_tool_call(call: Any, field: str, ignored: frozenset[str]) -> dict[str, Any]:
    """Return one call as ``{"type": "function", "function": {"name", "arguments": object}}``.

    Raises:
        RowProblem: It names no function, its arguments are no JSON object, or a field would be lost.
    """
    if not isinstance(call, dict):
        raise RowProblem("bad tool call", field, "an object {name, arguments}", call)
    function = call if call.get("function") is None else call["function"]
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowProblem(
            "bad tool call", f"{field}.function.name", "the name of a function", name if name is not None else call
        )
    if function is call:
        check_extra_fields(call, field, _FLAT_CALL_FIELDS, ignored)
    else:
        check_extra_fields(call, field, _CALL_FIELDS, ignored)
        check_extra_fields(function, f"{field}.function", _FUNCTION_FIELDS, ignored)
    return {"type": "function", "function": {"name": name, "arguments": _arguments(function, f"{field}.function")}}


def _arguments(function: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the arguments of a call, which some files spell ``parameters``."""
    arguments, parameters = function.get("arguments"), function.get("parameters")
    if arguments is None:
        arguments = parameters
    elif parameters is not None:
        raise RowProblem("bad tool call", f"{field}.parameters", "none beside 'arguments'", parameters)
    if isinstance(arguments, str):
        try:
            arguments = strict_json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise RowProblem(
                "bad tool call", f"{field}.arguments", f"a JSON object ({str(error)[:60]})", arguments
            ) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowProblem("bad tool call", f"{field}.arguments", "a JSON object", arguments)
    return arguments


def tool_call_message(value: Any, field: str, ignored: frozenset[str]) -> Message:
    """Return the assistant message for a turn whose whole value is a call, or a list of calls, as JSON.

    Raises:
        RowProblem: The value is no such JSON.
    """
    try:
        calls = strict_json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise RowProblem("bad tool call", field, f"JSON {{name, arguments}} ({str(error)[:60]})", value) from error
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise RowProblem("bad tool call", field, "at least one call", value)
    return {"role": "assistant", "content": "", "tool_calls": [read_tool_call(call, field, ignored) for call in calls]}


def read_tools(value: Any, field: str) -> list[Any] | None:
    """Return the tool list in OpenAI's form, or None where there is none; a JSON text is decoded first.

    Raises:
        RowProblem: The value is no list of tools.
    """
    if isinstance(value, str):
        try:
            value = strict_json.loads(value) if value.strip() else None
        except ValueError as error:
            raise RowProblem("bad tools", field, f"a JSON list of tools ({str(error)[:60]})", value) from error
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise RowProblem("bad tools", field, "a list of tools", value)
    tools = []
    for index, tool in enumerate(value):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem("bad tools", f"{field}[{index}]", "an object with a name", tool)
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tools


def calls_as_text(message: Message) -> str:
    """Return an assistant message's content with its calls behind it, in the Hermes form."""
    parts = [message["content"]] if message["content"] else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        name, arguments = (
            json.dumps(function["name"], ensure_ascii=False),
            json.dumps(function["arguments"], ensure_ascii=False),
        )
        parts.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(parts)
