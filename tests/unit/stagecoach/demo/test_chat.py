"""The demo chat set is what it claims to be, and the committed file is what its builder makes."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest

from stagecoach.demo import build
from stagecoach.demo.chat import demo_chat_bytes, demo_conversations
from stagecoach.errors import DataError


def messages_of(role: str) -> list[dict[str, Any]]:
    return [m for conversation in demo_conversations() for m in conversation["messages"] if m["role"] == role]


def test_the_committed_file_is_what_the_builder_makes() -> None:
    assert demo_chat_bytes() == build.chat_jsonl(), "run python -m stagecoach.demo.build and commit chat.jsonl"


def test_at_least_200_conversations_have_several_user_turns() -> None:
    conversations = demo_conversations()
    several_turns = [c for c in conversations if sum(m["role"] == "user" for m in c["messages"]) > 1]
    assert (len(conversations), len(messages_of("assistant")), len(several_turns)) == (268, 559, 207)


def test_conversations_have_distinct_ids_and_first_user_messages() -> None:
    conversations = demo_conversations()
    firsts = {next(m["content"] for m in c["messages"] if m["role"] == "user") for c in conversations}
    assert len({c["id"] for c in conversations}) == len(firsts) == len(conversations)


def test_answers_differ_within_their_first_40_characters() -> None:
    answers = [build.rendered_answer(m) for m in messages_of("assistant")]
    assert len({answer[:40] for answer in answers}) == len(answers)


def test_roles_follow_each_other_as_in_a_chat() -> None:
    """The user opens (after the system), an answer ends; a tool call is followed by its output, that by an answer."""
    allowed = {
        "": {"system", "user"},
        "system": {"user"},
        "user": {"assistant"},
        "assistant": {"user"},
        "call": {"tool"},
        "tool": {"assistant"},
    }
    for conversation in demo_conversations():
        last = ""
        for message in conversation["messages"]:
            assert message["role"] in allowed[last], conversation["id"]
            assert message["content"].strip() == message["content"] != ""
            last = "call" if "tool_calls" in message else message["role"]
        assert last == "assistant"


def test_tool_calls_are_in_the_openai_form() -> None:
    calls = [call for m in messages_of("assistant") for call in m.get("tool_calls", ())]
    assert len(calls) == 36
    assert {call["function"]["name"] for call in calls} == {"weather", "calculate", "timetable"}
    assert all(call["type"] == "function" and json.loads(call["function"]["arguments"]) for call in calls)
    assert len(messages_of("tool")) == len(calls)


@pytest.mark.parametrize(
    ("conversation_id", "text"),
    [("code-002", "```python\n"), ("german-001", "Danke"), ("emoji-002", "🌊"), ("words-012", "\nthe dog")],
)
def test_it_holds_code_languages_emoji_and_line_breaks(conversation_id: str, text: str) -> None:
    conversation = next(c for c in demo_conversations() if c["id"] == conversation_id)
    assert any(text in m["content"] for m in conversation["messages"])


def test_it_speaks_at_least_ten_languages_in_several_scripts() -> None:
    kinds = {c["id"].rsplit("-", 1)[0] for c in demo_conversations()}
    european = {
        "german",
        "french",
        "spanish",
        "italian",
        "portuguese",
        "dutch",
        "polish",
        "swedish",
        "turkish",
        "finnish",
    }
    assert european | {"russian", "greek", "japanese", "chinese", "korean", "arabic", "hindi"} <= kinds
    letters = {c for m in messages_of("assistant") for c in m["content"] if c.isalpha()}
    scripts = {unicodedata.name(c).split()[0] for c in letters}
    assert {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HANGUL", "CJK", "HIRAGANA", "DEVANAGARI"} <= scripts


def test_two_equal_answers_are_refused() -> None:
    chats = [
        {"id": f"x-{n}", "messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a" * 41}]}
        for n in (1, 2)
    ]
    with pytest.raises(DataError, match="x-2 and x-1: expected distinct texts"):
        build.check_distinct(chats)
