"""Renders conversations to text and says which characters of it are trained, and which spell control tokens as content.

For the shipped ChatML template the text is put together here, message by message, and compared with the template
itself for the first conversations and every thousandth after. For any other template the spans come from rendered
prefixes:

    render(messages[:k], generation prompt)     ...<user>Hi</user><assistant>
    render(messages[:k + 1])                    ...<user>Hi</user><assistant>Hello!</s>
                                                                              ^^^^^^^^^^ trained

Messages without a prompt of their own (the first, and those that are no answers) are found by a probe in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, repeat
from typing import Any

from stagecoach.errors import DataError, StagecoachError
from stagecoach.formats.chat_template import HERMES_TOOLS_AFTER, HERMES_TOOLS_BEFORE, IM_END, IM_START, tojson
from stagecoach.formats.tokenizer import ChatTokenizer
from stagecoach.recipe.pack import TrainOn
from stagecoach_pack.conversation import Conversation, Message, is_role_and_text
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources.messages import calls_as_text

_CHECKED_AT_FIRST = 200
_CHECKED_EVERY = 1000
_END_LINE = f"{IM_END}\n"
_MARKS = ("\ue0f0", "\ue0f1")
"""Private-use characters that wrap a control string of the content while a foreign template renders it."""

_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe_tool", "description": "", "parameters": {"type": "object", "properties": {}}},
}

_PROBE_CONTENT = "\ue0f2probe\ue0f2"

Span = tuple[int, int]


@dataclass(slots=True)
class Rendered:
    """One conversation as text.

    Attributes:
        text: The whole of it.
        roles: Role of each message.
        trained: Which of the messages are targets.
        find_turns: Returns ``turns``, which not every labeller asks for.
        literal: Ranges, ascending, in which content spells a control token; they stay plain text.
        tools_as_text: Tools or calls were put into content, because the template would have dropped them.
    """

    text: str
    roles: list[str]
    trained: list[bool]
    find_turns: Callable[[], list[Span]]
    literal: list[Span] = field(default_factory=list)
    tools_as_text: bool = False

    @property
    def turns(self) -> list[Span]:
        """For each message, the characters from its first generated one to behind the token that ends it."""
        return self.find_turns()


@dataclass(slots=True)
class _Written:
    """A conversation as a foreign template gets it."""

    messages: list[Message]
    tools: list[Any] | None
    trained: list[bool]
    as_text: bool


def trained_messages(messages: Sequence[Message], roles: Sequence[str], train_on: TrainOn) -> list[bool]:
    """Return which messages are targets; a message's own weight wins over ``train_on``."""
    if train_on == "all":
        chosen = [True] * len(roles)
    elif train_on == "last":
        last = max((index for index, role in enumerate(roles) if role == "assistant"), default=-1)
        chosen = [index == last for index in range(len(roles))]
    else:
        chosen = [role == train_on for role in roles]
    if not is_role_and_text(messages):
        for index, message in enumerate(messages):
            if "weight" in message:
                chosen[index] = bool(message["weight"])
    return chosen


class _Headers(dict[str, str]):
    """What stands before the content of a role's messages."""

    def __missing__(self, role: str) -> str:
        self[role] = f"{IM_START}{role}\n"
        return self[role]


class Renderer:
    """Renders conversations for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer, train_on: TrainOn) -> None:
        """Choose between the shipped ChatML form and the tokenizer's own template."""
        self._tokenizer = tokenizer
        self._train_on: TrainOn = train_on
        self._controls = tokenizer.control_pattern
        self._initials = sorted({text[0] for text in tokenizer.control_ids if text})
        self._bos = tokenizer.special.bos or "" if tokenizer.is_chatml and tokenizer.adds_bos else ""
        self._headers = _Headers()
        self._rendered = 0
        self.render: Callable[[Conversation], Rendered] = (
            self._render_chatml if tokenizer.is_chatml else self._render_template
        )

    def _render_chatml(self, talk: Conversation) -> Rendered:
        roles, first = talk.roles, 0
        if talk.tools or not is_role_and_text(talk.messages) or "tool" in roles:
            contents, first = _chatml_contents(talk)
        else:
            contents = [message["content"] for message in talk.messages]
        headers = [self._headers[role] for role in ["system"] * first + roles]
        text = self._bos + "".join(chain.from_iterable(zip(headers, contents, repeat(_END_LINE))))
        self._compare_with_template(talk, text)
        find_turns = partial(_chatml_turns, len(self._bos), headers, contents, first)
        trained = trained_messages(talk.messages, roles, self._train_on)
        return Rendered(text, roles, trained, find_turns, self._literal(headers, contents))

    def _literal(self, headers: list[str], contents: list[str]) -> list[Span]:
        """Return where content spells control tokens; most hold no character with which one begins."""
        together = "".join(contents)
        if not any(initial in together for initial in self._initials):
            return []
        turns = _chatml_turns(len(self._bos), headers, contents, 0)
        return [
            (match.start() + begin, match.end() + begin)
            for (begin, _), content in zip(turns, contents, strict=True)
            for match in self._controls.finditer(content)
        ]

    def _compare_with_template(self, talk: Conversation, text: str) -> None:
        self._rendered += 1
        if self._rendered > _CHECKED_AT_FIRST and self._rendered % _CHECKED_EVERY:
            return
        expected = self._tokenizer.template.render(without_weights(talk.messages), talk.tools)
        if text != expected:
            raise StagecoachError(
                f"a bug in Stagecoach: a conversation renders to {text[:200]!a}, its template gives {expected[:200]!a}"
            )

    def _render_template(self, talk: Conversation) -> Rendered:
        written = self._for_template(talk)
        messages, tools = self._mark(written.messages), self._mark(written.tools)
        full = self._template(messages, tools)
        if any(f"\\u{ord(mark):04x}" in full for mark in _MARKS):
            raise RowProblem(
                "control string", "", "content without control strings, which this template escapes", full[:60]
            )
        _check_complete(written.messages, full)
        turns = [
            self._turn_by_prefixes(messages, tools, full, index) if chosen else (0, 0)
            for index, chosen in enumerate(written.trained)
        ]
        roles = [message["role"] for message in written.messages]
        return _without_marks(Rendered(full, roles, written.trained, lambda: turns, [], written.as_text))

    def _template(self, messages: list[Message], tools: list[Any] | None, *, prompt: bool = False) -> str:
        try:
            return self._tokenizer.template.render(messages, tools, add_generation_prompt=prompt)
        except DataError as error:
            reason = str(error.__cause__ or error)[:100]
            roles = [message["role"] for message in messages]
            expected = f"a conversation that the chat template takes ({reason})"
            raise RowProblem("refused by the template", "", expected, roles) from error

    def _for_template(self, talk: Conversation) -> _Written:
        """Put tools and calls into content, in the Hermes form, where the template would drop them."""
        trained = trained_messages(talk.messages, talk.roles, self._train_on)
        messages = without_weights(talk.messages)
        calls = any("tool_calls" in message or message["role"] == "tool" for message in messages)
        if (calls and not self._template_shows_calls) or (talk.tools and not self._template_shows_tools):
            return hermes_messages(messages, talk.tools, trained)
        return _Written(messages, talk.tools, trained, False)

    @cached_property
    def _template_shows_tools(self) -> bool:
        return self._shows([{"role": "user", "content": "Hi"}], [_PROBE_TOOL], "probe_tool")

    @cached_property
    def _template_shows_calls(self) -> bool:
        call = {"type": "function", "function": {"name": "probe_call", "arguments": {"key": "probe_argument"}}}
        messages: list[Message] = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "probe_result"},
            {"role": "assistant", "content": "Done"},
        ]
        return self._shows(messages, None, "probe_call", "probe_argument", "probe_result")

    def _shows(self, messages: list[Message], tools: list[Any] | None, *wanted: str) -> bool:
        """Tell whether the template writes all of these down."""
        try:
            text = self._tokenizer.template.render(messages, tools)
        except DataError:
            return False
        return all(word in text for word in wanted)

    def _turn_by_prefixes(self, messages: list[Message], tools: list[Any] | None, full: str, index: int) -> Span:
        """Return the characters of message ``index`` in ``full``: behind its header to behind its last control
        token.
        """
        is_assistant = messages[index]["role"] == "assistant"
        before = self._template(messages[:index], tools, prompt=True) if is_assistant and index else ""
        upto = self._template(messages[: index + 1], tools)
        for text, what in ((before, "the prompt before it"), (upto, "the text up to it")):
            if not full.startswith(text):
                raise DataError(
                    f"{self._tokenizer.origin}: message {index + 1} ({messages[index]['role']}): {what} is not"
                    " the beginning of"
                    " the whole rendered conversation, so nobody can tell which tokens the model shall produce;"
                    " use chat_format: chatml"
                )
        if not is_assistant:
            begin, end = self._content(messages, tools, full, index)
        elif index:
            begin, end = len(before), len(upto)
        else:  # no conversation before it, which could be a prompt; without its calls, which may stand before content
            plain = [{"role": "assistant", "content": messages[0]["content"]}]
            begin, end = self._content(plain, tools, upto, 0)[0], len(upto)
        ends = [match.end() for match in self._controls.finditer(upto, begin) if not _is_marked(upto, match)]
        return (begin, ends[-1] if ends else end)

    def _content(self, messages: list[Message], tools: list[Any] | None, full: str, index: int) -> Span:
        """Return the characters of a message's content in ``full``, the text of ``messages``: a probe is put in its
        place, and all around it has to stay.

        Raises:
            RowProblem: The probe is lost, or something else changes with it.
        """
        probe = {**messages[index], "content": _PROBE_CONTENT}
        probed = self._template([*messages[:index], probe, *messages[index + 1 :]], tools)
        before, found, behind = probed.partition(_PROBE_CONTENT)
        begin, end = len(before), len(full) - len(behind)
        if not found or begin > end or not (full.startswith(before) and full.endswith(behind)):
            raise RowProblem(
                "unclear turn",
                f"messages[{index}].content",
                "a message whose place in the rendered text can be told, to train it (or chat_format: chatml)",
                messages[index]["content"],
            )
        return begin, end

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            if any(mark in value for mark in _MARKS):
                raise RowProblem("private-use character", "", "text without U+E0F0 and U+E0F1", value)
            return self._controls.sub(lambda match: f"{_MARKS[0]}{match.group()}{_MARKS[1]}", value)
        if isinstance(value, dict):
            return {key: self._mark(item) for key, item in value.items()}
        return [self._mark(item) for item in value] if isinstance(value, list) else value


def without_weights(messages: Sequence[Message]) -> list[Message]:
    """Return messages as a template should see them."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def hermes_messages(messages: Sequence[Message], tools: Sequence[Any] | None, trained: Sequence[bool]) -> _Written:
    """Return messages that say in plain content what tools, calls and results say in fields.

    Tool results become user messages, since a template that knows no tools knows no role for them; neighbours are
    joined.
    """
    written: list[Message] = []
    chosen: list[bool] = []
    previous = ""
    for message, is_trained in zip(messages, trained, strict=True):
        role, content = message["role"], message["content"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if previous == "tool":
                written[-1]["content"] += "\n" + content
                chosen[-1] |= is_trained
                continue
        elif "tool_calls" in message:
            content = calls_as_text(message)
        written.append({"role": "user" if role == "tool" else role, "content": content})
        chosen.append(is_trained)
        previous = role
    if tools and written and written[0]["role"] == "system":
        written[0]["content"] = system_with_tools(written[0]["content"], tools)
    elif tools:
        written.insert(0, {"role": "system", "content": system_with_tools("", tools)})
        chosen.insert(0, False)
    return _Written(written, None, chosen, True)


def system_with_tools(system: str, tools: Sequence[Any]) -> str:
    """Return a system message's text with the tools' signatures behind it, in the Hermes form."""
    lines = "".join("\n" + tojson(tool) for tool in tools)
    return (f"{system}\n\n" if system else "") + HERMES_TOOLS_BEFORE + lines + HERMES_TOOLS_AFTER


def _chatml_contents(talk: Conversation) -> tuple[list[str], int]:
    """Return the texts between header and end token, and how many stand before the first message's: 1 for tools
    without a system message of the conversation's own.
    """
    contents: list[str] = []
    num_added = int(bool(talk.tools) and not (talk.messages and talk.messages[0]["role"] == "system"))
    if talk.tools and num_added:
        contents.append(system_with_tools("", talk.tools))
    for index, message in enumerate(talk.messages):
        role, content = message["role"], message["content"]
        if role == "assistant" and "tool_calls" in message:
            content = calls_as_text(message)
        elif role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
        elif index == 0 and role == "system" and talk.tools:
            content = system_with_tools(content, talk.tools)
        contents.append(content)
    return contents, num_added


def _chatml_turns(at: int, headers: Sequence[str], contents: Sequence[str], first: int) -> list[Span]:
    """Return the turns from number ``first`` on of a text whose first header begins at ``at``."""
    turns: list[Span] = []
    for header, content in zip(headers, contents, strict=True):
        begin = at + len(header)
        at = begin + len(content) + len(_END_LINE)
        turns.append((begin, at - 1))
    return turns[first:]


def _check_complete(messages: Sequence[Message], full: str) -> None:
    """Refuse a conversation of which the template left something out.

    Raises:
        RowProblem: A message's content is not in the text.
    """
    plain = full.replace(_MARKS[0], "").replace(_MARKS[1], "")
    for index, message in enumerate(messages):
        wanted = message["content"].strip()
        if wanted not in plain:
            raise RowProblem(
                "lost content", f"messages[{index}].content", "content that the chat template keeps", wanted
            )


def _is_marked(text: str, match: re.Match[str]) -> bool:
    return match.start() > 0 and text[match.start() - 1] == _MARKS[0]


def _without_marks(rendered: Rendered) -> Rendered:
    """Take the marks out again, and remember what stood between them."""
    if _MARKS[0] not in rendered.text and _MARKS[1] not in rendered.text:
        return rendered
    positions = [index for index, character in enumerate(rendered.text) if character in _MARKS]
    opened = [index for index in positions if rendered.text[index] == _MARKS[0]]
    if len(positions) != 2 * len(opened):
        raise RowProblem(
            "control string", "", "content whose control strings the chat template leaves whole", rendered.text[:60]
        )

    def moved(index: int) -> int:
        return index - sum(position < index for position in positions)

    literal = [(moved(begin), moved(end)) for begin, end in zip(positions[::2], positions[1::2], strict=True)]
    text = rendered.text.replace(_MARKS[0], "").replace(_MARKS[1], "")
    turns = [(moved(begin), moved(end)) for begin, end in rendered.turns]
    return Rendered(text, rendered.roles, rendered.trained, lambda: turns, literal, rendered.tools_as_text)
