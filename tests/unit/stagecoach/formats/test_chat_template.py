"""The shipped ChatML template, in literal text, and the sandbox around foreign templates."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.errors import DataError
from stagecoach.formats.chat_template import ChatTemplate, chatml_template

TOOL = {"type": "function", "function": {"name": "weather", "description": "Wetter für <Ort>", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}


def render(messages: list[dict[str, Any]], tools: list[Any] | None = None, **options: Any) -> str:
    return ChatTemplate(chatml_template(with_bos=False), {}, "shipped").render(messages, tools, **options)


def test_messages_are_written_one_after_the_other_untrimmed() -> None:
    assert render([{"role": "system", "content": " s "}, {"role": "user", "content": "\n"}]) == (
        "<|im_start|>system\n s <|im_end|>\n<|im_start|>user\n\n<|im_end|>\n"
    )


def test_there_is_no_default_system_message() -> None:
    text = render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_bos_stands_in_front_where_the_tokenizer_adds_one() -> None:
    template = ChatTemplate(chatml_template(with_bos=True), {"bos_token": "<s>"}, "shipped")
    assert template.render([{"role": "user", "content": "Hi"}]) == "<s><|im_start|>user\nHi<|im_end|>\n"


def test_tools_stand_behind_the_system_message() -> None:
    text = render([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], [TOOL])
    assert text.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n\nYou may call one or more functions")
    assert (
        '<tools>\n{"type": "function", "function": {"name": "weather", "description": "Wetter für <Ort>", '
        '"parameters": {}}}\n</tools>' in text
    )
    assert text.endswith('"arguments": <args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n')
    assert text.count("<|im_start|>system") == 1


def test_tools_without_a_system_message_get_one_of_their_own() -> None:
    assert render([{"role": "user", "content": "Hi"}], [TOOL]).startswith("<|im_start|>system\n# Tools\n\n")


@pytest.mark.parametrize("content", ["Looking.", "", None])
def test_calls_follow_the_content_in_the_hermes_form(content: str | None) -> None:
    text = render([{"role": "assistant", "content": content, "tool_calls": [CALL, CALL]}])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    before = f"{content}\n" if content else ""
    assert text == f"<|im_start|>assistant\n{before}{call}\n{call}<|im_end|>\n"


def test_arguments_that_are_text_already_are_written_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    assert '{"name": "f", "arguments": {"a":1}}' in render([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_results_are_tool_messages() -> None:
    assert render([{"role": "tool", "content": "7"}]) == (
        "<|im_start|>tool\n<tool_response>\n7\n</tool_response><|im_end|>\n"
    )


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([{"role": "user", "content": parts}]) == "<|im_start|>user\nab<|im_end|>\n"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(DataError, match="role robot is not one of system, user, assistant, tool"):
        render([{"role": "robot", "content": "x"}])


def test_the_beginning_of_a_conversation_is_the_beginning_of_its_text() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "a"},
    ]
    for tools in (None, [TOOL]):
        whole = render(messages, tools)
        for length in range(1, len(messages)):
            assert whole.startswith(render(messages[:length], tools))
        for length in (2, 4):
            assert whole.startswith(render(messages[:length], tools, add_generation_prompt=True))


def test_transformers_renders_the_same_text() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Grüße"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    found: Any = render_jinja_template(
        conversations=[messages],
        tools=[TOOL],
        chat_template=chatml_template(with_bos=False),
        add_generation_prompt=True,
    )
    assert render(messages, [TOOL], add_generation_prompt=True) == found[0][0]


def test_a_template_cannot_reach_into_python() -> None:
    template = ChatTemplate("{{ ''.__class__.__mro__ }}", {}, "evil")
    with pytest.raises(DataError, match="evil: the chat template refuses the conversation"):
        template.render([])


def test_a_template_that_asks_for_the_date_gets_none() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') if strftime_now is defined else 'fixed' }}", {}, "dated")
    assert template.render([]) == "fixed"


def test_a_generation_block_renders_what_is_inside() -> None:
    assert ChatTemplate("a{% generation %}b{% endgeneration %}c", {}, "marked").render([]) == "abc"


def test_a_template_that_does_not_compile_is_refused() -> None:
    with pytest.raises(DataError, match="broken: expected a Jinja chat template"):
        ChatTemplate("{% for %}", {}, "broken")
