"""Turns a decoded row of any common chat schema into a ``Conversation``, or says which field does not fit and why.

The schema is decided by the first row of a source and then required of every row: nothing is guessed row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagecoach.recipe.data import DataSource, RowFormat
from stagecoach_pack.conversation import Conversation, Message
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources.messages import (
    ROLE_ALIASES,
    check_extra_fields,
    read_message,
    read_tools,
    tool_call_message,
    with_weight,
)

Schema = Callable[[Mapping[str, Any]], Conversation]

_EXPECTED_KEYS: dict[RowFormat, str] = {
    "messages": "a list of {role, content} under 'messages' or 'conversations'",
    "sharegpt": "a list of {from, value} under 'conversations' or 'items'",
    "alpaca": "'instruction' and 'output'",
    "prompt_completion": "'prompt' and 'completion'",
    "input_output": "a list of {input, output} under 'conversation'",
    "openorca": "'system_prompt', 'question' and 'response'",
    "alternating": "a list of texts under 'data', the user's first",
}


_TURN_COLUMNS = ("messages", "conversations", "items", "conversation")


def detect_format(row: Any, columns: Mapping[str, str]) -> RowFormat:
    """Return the schema that a row has.

    Args:
        row: Any decoded value.
        columns: Standard column name -> name in these files.

    Raises:
        RowProblem: None of the known ones.
    """
    row_format = _schema_of(row, columns) if isinstance(row, dict) else None
    if row_format is None:
        raise _unknown_schema(row, columns)
    return row_format


def _schema_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> RowFormat | None:
    present = {name for name in _TURN_COLUMNS if isinstance(row.get(columns.get(name, name)), list)}
    for name in sorted(present, key=_TURN_COLUMNS.index):
        turns = row[columns.get(name, name)]
        first = next((turn for turn in turns if isinstance(turn, dict)), {})
        if "from" in first:
            return "sharegpt"
        if "role" in first:
            return "messages"
        if "input" in first:
            return "input_output"
    keys = {
        standard
        for standard in ("instruction", "output", "prompt", "completion", "question", "response")
        if columns.get(standard, standard) in row
    }
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if {"prompt", "completion"} <= keys:
        return "prompt_completion"
    if {"question", "response"} <= keys:
        return "openorca"
    texts = row.get(columns.get("data", "data"))
    if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
        return "alternating"
    return None


def _unknown_schema(row: Any, columns: Mapping[str, str]) -> RowProblem:
    """Return what is most likely wrong with a row that has no known schema."""
    if not isinstance(row, dict):
        return _not_an_object(row)
    if {"role", "content"} <= row.keys():
        return RowProblem("single message", "", "a conversation, a list of messages under 'messages'", row)
    for column in (columns.get(name, name) for name in _TURN_COLUMNS):
        if row.get(column) == []:
            return RowProblem("empty conversation", column, "at least one message", "none")
        if isinstance(row.get(column), str):
            return _not_a_list(column, row[column])
    for name, value in row.items():
        if isinstance(value, list) and value and _has_schema(value[0], columns):
            return RowProblem(
                "rows in one object",
                "",
                f"one conversation; write the rows of '{name}' one a line, or as an array that is the whole file",
                list(row),
            )
    known = "; ".join(f"{name}: {keys}" for name, keys in _EXPECTED_KEYS.items())
    expected = f"one of the schemas ({known}); name it with `format` and `columns`"
    return RowProblem("unknown schema", "", expected, list(row))


def _has_schema(row: Any, columns: Mapping[str, str]) -> bool:
    """Tell whether an object inside a row is a conversation itself."""
    if not isinstance(row, dict):
        return False
    return bool(_schema_of(row, columns)) or any(row.get(columns.get(name, name)) == [] for name in _TURN_COLUMNS)


def _not_an_object(row: Any) -> RowProblem:
    hint = "; put a list of messages under 'messages'" if isinstance(row, list) else ""
    return RowProblem("not an object", "", f"a JSON object{hint}", row)


def _not_a_list(name: str, value: Any) -> RowProblem:
    is_json = isinstance(value, str) and value.lstrip().startswith("[")
    hint = ", found a text that holds one as JSON: decode it when the file is written" if is_json else ""
    return RowProblem("wrong type", name, f"a list{hint}", value)


_SHAREGPT_FIELDS = frozenset({"from", "value", "weight"})
_INPUT_OUTPUT_FIELDS = frozenset({"input", "output"})


class RowReader:
    """Reads rows of one source in one schema."""

    def __init__(self, source: DataSource, row_format: RowFormat) -> None:
        """Prepare for rows of ``row_format``, which is not ``auto``."""
        self.row_format = row_format
        self._columns = source.columns
        self._roles: dict[str, str] = {**ROLE_ALIASES, **source.roles}
        self._text_roles = {name: role for name, role in self._roles.items() if role != "tool_call"}
        self._ignored = frozenset(source.ignore_fields)
        self._system = source.system
        self._schema: Schema = {
            "messages": self._messages,
            "sharegpt": self._sharegpt,
            "alpaca": self._alpaca,
            "prompt_completion": self._prompt_completion,
            "input_output": self._input_output,
            "openorca": self._openorca,
            "alternating": self._alternating,
        }[row_format]

    def read(self, row: Any) -> Conversation:
        """Return the conversation of one row; it may be empty, since filters of a source may come first.

        Raises:
            RowProblem: A field is missing, of the wrong type, or holds what cannot be kept.
        """
        if not isinstance(row, dict):
            raise _not_an_object(row)
        conversation = self._schema(row)
        conversation.tools = self._tools(row)
        self._add_system(conversation.messages, row)
        identity = row.get(self._columns.get("id", "id"))
        conversation.identity = (
            identity if isinstance(identity, str) else str(identity) if isinstance(identity, int) else ""
        )
        return conversation

    def _add_system(self, messages: list[Message], row: Mapping[str, Any]) -> None:
        """Put the row's own system message, or the recipe's for rows that have none, before the others."""
        column = self._text(row, "system", optional=True) if "system" not in self._ignored else ""
        first = messages[0] if messages else {}
        if column and any(message["role"] == "system" for message in messages):
            if first.get("role") != "system" or first["content"] != column:
                name = self._columns.get("system", "system")
                raise RowProblem("two system messages", name, "one, in the column or as a turn", column)
        elif column:
            messages.insert(0, {"role": "system", "content": column})
        elif self._system is not None and first.get("role") != "system":
            messages.insert(0, {"role": "system", "content": self._system})

    def _column(self, row: Mapping[str, Any], *names: str) -> tuple[str, Any]:
        """Return the first of the columns that the row has, with the name it has there."""
        for name in names:
            actual = self._columns.get(name, name)
            if actual in row:
                return actual, row[actual]
        raise RowProblem(
            "missing column", names[0], _EXPECTED_KEYS[self.row_format] + ", as in the first row", list(row)
        )

    def _text(self, row: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
        actual = self._columns.get(name, name)
        value = row.get(actual)
        if isinstance(value, str):
            return value
        if value is None and optional:
            return ""
        if actual not in row:
            raise RowProblem("missing column", actual, _EXPECTED_KEYS[self.row_format], list(row))
        raise RowProblem("wrong type", actual, "text", value)

    def _turns(self, row: Mapping[str, Any], *names: str) -> tuple[str, list[Any]]:
        name, turns = self._column(row, *names)
        if not isinstance(turns, list):
            raise _not_a_list(name, turns)
        return name, turns

    def _role(self, value: Any, field: str) -> str:
        role = self._roles.get(value) if isinstance(value, str) else None
        if role is None:
            raise RowProblem(
                "unknown role", field, f"one of {', '.join(sorted(self._roles))} (add others under `roles`)", value
            )
        return role

    def _read_messages(self, turns: Sequence[Any], name: str) -> list[Message]:
        messages: list[Message] = []
        roles = self._text_roles
        for index, turn in enumerate(turns):
            if type(turn) is dict and len(turn) == 2:  # nothing but role and text, as nearly all messages are
                role, content = turn.get("role"), turn.get("content")
                if type(role) is str and role in roles and type(content) is str:
                    messages.append({"role": roles[role], "content": content})
                    continue
            messages.append(read_message(turn, f"{name}[{index}]", self._role, self._ignored))
        return messages

    def _messages(self, row: Mapping[str, Any]) -> Conversation:
        name, turns = self._turns(row, "messages", "conversations", "conversation")
        return Conversation(self._read_messages(turns, name))

    def _tools(self, row: Mapping[str, Any]) -> list[Any] | None:
        names = dict.fromkeys(
            self._columns.get(name, name) for name in ("tools", "functions") if name not in self._ignored
        )
        found = {name: tools for name in names if (tools := read_tools(row.get(name), name)) is not None}
        if len(found) > 1:
            raise RowProblem("bad tools", list(found)[1], f"none beside '{next(iter(found))}'", row[list(found)[1]])
        return next(iter(found.values()), None)

    def _sharegpt(self, row: Mapping[str, Any]) -> Conversation:
        name, turns = self._turns(row, "conversations", "items", "messages", "conversation")
        messages: list[Message] = []
        for index, turn in enumerate(turns):
            field = f"{name}[{index}]"
            if not isinstance(turn, dict):
                raise RowProblem("wrong type", field, "an object {from, value}", turn)
            if not isinstance(turn.get("value"), str):
                raise RowProblem("wrong type", f"{field}.value", "text", turn.get("value", list(turn)))
            check_extra_fields(turn, field, _SHAREGPT_FIELDS, self._ignored)
            role = self._role(turn.get("from"), f"{field}.from")
            message: Message = {"role": role, "content": turn["value"]}
            if role == "tool_call":
                message = tool_call_message(turn["value"], f"{field}.value", self._ignored)
            messages.append(with_weight(message, turn, field))
        return Conversation(messages)

    def _alpaca(self, row: Mapping[str, Any]) -> Conversation:
        messages: list[Message] = []
        history = row.get(self._columns.get("history", "history")) or []
        if not isinstance(history, list):
            raise RowProblem("wrong type", "history", "a list of pairs", history)
        for index, pair in enumerate(history):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise RowProblem("wrong type", f"history[{index}]", "a pair of texts", pair)
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        instruction, extra = self._text(row, "instruction"), self._text(row, "input", optional=True)
        messages.append({"role": "user", "content": f"{instruction}\n{extra}" if extra else instruction})
        messages.append({"role": "assistant", "content": self._text(row, "output")})
        return Conversation(messages)

    def _prompt_completion(self, row: Mapping[str, Any]) -> Conversation:
        messages: list[Message] = []
        for standard, role in (("prompt", "user"), ("completion", "assistant")):
            name, value = self._column(row, standard)
            if isinstance(value, list):
                messages += self._read_messages(value, name)
            elif isinstance(value, str):
                messages.append({"role": role, "content": value})
            else:
                raise RowProblem("wrong type", name, "text or a list of messages", value)
        return Conversation(messages)

    def _input_output(self, row: Mapping[str, Any]) -> Conversation:
        name, turns = self._turns(row, "conversation", "conversations", "messages")
        messages: list[Message] = []
        for index, turn in enumerate(turns):
            if not (
                isinstance(turn, dict) and isinstance(turn.get("input"), str) and isinstance(turn.get("output"), str)
            ):
                raise RowProblem("wrong type", f"{name}[{index}]", "an object {input, output} of texts", turn)
            check_extra_fields(turn, f"{name}[{index}]", _INPUT_OUTPUT_FIELDS, self._ignored)
            messages += [{"role": "user", "content": turn["input"]}, {"role": "assistant", "content": turn["output"]}]
        return Conversation(messages)

    def _openorca(self, row: Mapping[str, Any]) -> Conversation:
        roles = (("system_prompt", "system"), ("question", "user"), ("response", "assistant"))
        return Conversation([{"role": role, "content": self._text(row, name)} for name, role in roles])

    def _alternating(self, row: Mapping[str, Any]) -> Conversation:
        name, texts = self._turns(row, "data")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise RowProblem("wrong type", f"{name}[{index}]", "text", text)
        roles = ("user", "assistant")
        return Conversation([{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)])
