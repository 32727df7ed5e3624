"""Rendering: ChatML put together here equals its template; foreign templates keep everything or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.errors import DataError
from stagecoach.formats.tokenizer import ChatTokenizer
from stagecoach.recipe.pack import TrainOn
from stagecoach_pack.chat import Renderer, hermes_messages
from stagecoach_pack.conversation import Conversation
from stagecoach_pack.problems import RowProblem
from tests.unit.stagecoach_pack.chat_tokenizers import CHATML_FAMILIES, Family, chat_tokenizer, final_files
from tests.unit.stagecoach_pack.generated_chats import generated_chat

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOL_TALK = Conversation(
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "12 degrees"},
        {"role": "tool", "content": "windy"},
        {"role": "assistant", "content": "12 degrees, windy."},
    ],
    [TOOL],
)


def with_template(template: str, family: Family = "smollm2-template") -> ChatTokenizer:
    """Return a tokenizer with another chat template."""
    import json

    files = dict(final_files(family))
    config = {**json.loads(files["tokenizer_config.json"]), "chat_template": template}
    return ChatTokenizer({**files, "tokenizer_config.json": json.dumps(config).encode()}, "other")


@pytest.mark.parametrize("family", CHATML_FAMILIES)
def test_chatml_put_together_here_equals_the_shipped_template(family: Family) -> None:
    tokenizer = chat_tokenizer(family)
    renderer = Renderer(tokenizer, "assistant")
    with_system = Conversation([{"role": "system", "content": "s"}, *TOOL_TALK.messages], TOOL_TALK.tools)
    empty_system = Conversation([{"role": "system", "content": ""}, *TOOL_TALK.messages], TOOL_TALK.tools)
    for talk in (TOOL_TALK, with_system, empty_system, *(generated_chat(seed) for seed in range(300))):
        assert renderer.render(talk).text == tokenizer.template.render(talk.messages, talk.tools)


def test_turns_are_contents_with_their_end_token() -> None:
    rendered = Renderer(chat_tokenizer("mistral"), "assistant").render(TOOL_TALK)
    assert [rendered.text[begin:end] for begin, end in rendered.turns] == [
        "Weather?<|im_end|>",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
        "<tool_response>\n12 degrees\n</tool_response><|im_end|>",
        "<tool_response>\nwindy\n</tool_response><|im_end|>",
        "12 degrees, windy.<|im_end|>",
    ]
    assert rendered.trained == [False, True, False, False, True]


def test_a_template_that_drops_tools_gets_them_as_text() -> None:
    rendered = Renderer(chat_tokenizer("smollm2-template"), "assistant").render(TOOL_TALK)
    assert rendered.tools_as_text
    assert rendered.text.startswith("<|im_start|>system\n# Tools\n\n")
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>' in rendered.text
    assert (
        "<|im_start|>user\n<tool_response>\n12 degrees\n</tool_response>\n<tool_response>\nwindy\n</tool_response>"
        in rendered.text
    )
    trained = [
        rendered.text[begin:end]
        for (begin, end), chosen in zip(rendered.turns, rendered.trained, strict=True)
        if chosen
    ]
    assert [text[:12] for text in trained] == ["<tool_call>\n", "12 degrees, "]


def test_a_template_that_shows_tools_gets_them_as_fields() -> None:
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rendered = Renderer(with_template(template), "assistant").render(TOOL_TALK)
    assert not rendered.tools_as_text
    assert rendered.text.startswith("[weather]<|im_start|>user\n")
    assert 'CALL weather {"city": "Zürich"}<|im_end|>' in rendered.text


def test_a_template_that_drops_content_is_refused_for_that_row() -> None:
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    renderer = Renderer(with_template(template), "assistant")
    talk = Conversation([{"role": "system", "content": "secret"}, {"role": "user", "content": "u"}])
    with pytest.raises(
        RowProblem, match=r"messages\[0\]\.content: expected content that the chat template keeps, found 'secret'"
    ):
        renderer.render(talk)


def test_a_template_whose_prefixes_do_not_nest_is_refused_with_the_turn() -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    renderer = Renderer(with_template(template), "assistant")
    talk = Conversation([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}])
    with pytest.raises(
        DataError,
        match=r"message 2 \(assistant\): the prompt before it is not the beginning .* use chat_format: chatml",
    ):
        renderer.render(talk)


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    renderer = Renderer(chat_tokenizer("llama2-template"), "assistant")
    odd = Conversation([{"role": "user", "content": "u"}, {"role": "system", "content": "late"}])
    with pytest.raises(RowProblem, match="only user and assistant"):
        renderer.render(odd)


def test_llama2_answers_end_with_their_own_end_token() -> None:
    talk = Conversation([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}] * 2)
    rendered = Renderer(chat_tokenizer("llama2-template"), "assistant").render(talk)
    assert rendered.text == "<s>[INST] u [/INST] a </s>" * 2
    assert trained_texts(Renderer(chat_tokenizer("llama2-template"), "assistant"), talk) == [" a </s>", " a </s>"]


def trained_texts(renderer: Renderer, talk: Conversation) -> list[str]:
    """Return the characters that are targets, one text a message."""
    rendered = renderer.render(talk)
    return [
        rendered.text[begin:end]
        for (begin, end), chosen in zip(rendered.turns, rendered.trained, strict=True)
        if chosen
    ]


def talk_of(roles: str, *, content: str = "{}", weight: int | None = None) -> Conversation:
    """Return a conversation of these roles' initials; each message holds its initial and place, the first a weight."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages: list[dict[str, Any]] = [
        {"role": names[role], "content": content.format(f"{role}{index}")} for index, role in enumerate(roles)
    ]
    return Conversation([messages[0] | ({} if weight is None else {"weight": weight}), *messages[1:]])


ENDS = {
    "llama2-template": ("", " </s>"),
    "llama3-template": ("<|eot_id|>",) * 2,
    "smollm2-template": ("<|im_end|>",) * 2,
}
"""What ends a question or system message, and an answer."""


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize(
    ("train_on", "weight", "roles", "trained"),
    [
        ("assistant", None, "auaua", "a0 a2 a4"),
        ("assistant", 0, "aua", "a2"),
        ("last", None, "a", "a0"),
        ("last", 1, "aua", "a0 a2"),
        ("user", None, "uaua", "u0 u2"),
        ("user", None, "suaua", "u1 u3"),
        ("user", None, "aua", "u1"),
        ("all", None, "suaua", "s0 u1 a2 u3 a4"),
        ("all", None, "aua", "a0 u1 a2"),
        ("assistant", 1, "sua", "s0 a2"),
        ("assistant", 1, "ua", "u0 a1"),
    ],
)
def test_foreign_templates_train_content_and_its_end(
    family: Family, train_on: TrainOn, weight: int | None, roles: str, trained: str
) -> None:
    """Headers, BOS, ``[INST]`` and a template's own system message are no targets, wherever they stand."""
    expected = [word + ENDS[family][word[0] == "a"] for word in trained.split()]
    found = trained_texts(Renderer(chat_tokenizer(family), train_on), talk_of(roles, weight=weight))
    assert [text.lstrip(" ") for text in found] == expected


@pytest.mark.parametrize("family", ["llama2-template", "smollm2-template"])
def test_spaces_around_content_that_a_template_keeps_are_trained(family: Family) -> None:
    found = trained_texts(Renderer(chat_tokenizer(family), "all"), talk_of("sua", content="  {} \n"))
    assert found[:2] == ["  s0 \n" + ENDS[family][0], "  u1 \n" + ENDS[family][0]]


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.content | length }}:{{ m.content }}<|im_end|>{% endfor %}", "aua"),
        ("{{ messages[0].content }}<|im_end|>{{ messages[0].content | length }}", "u"),
        ("{% for m in messages %}{{ m.content.replace('probe', '') }}<|im_end|>{% endfor %}", "au"),
    ],
    ids=["counted before", "counted behind", "changed"],
)
def test_a_message_whose_place_nobody_can_tell_is_not_trained_but_a_problem(template: str, roles: str) -> None:
    renderer = Renderer(with_template(template), "all")
    with pytest.raises(RowProblem, match=r"messages\[0\]\.content: expected a message whose place .* can be told"):
        renderer.render(talk_of(roles))


def test_calls_of_a_first_answer_are_trained_where_a_template_writes_them_before_content() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    talk = Conversation([{"role": "assistant", "content": "", "tool_calls": [CALL]}, *TOOL_TALK.messages[2:]])
    assert (
        trained_texts(Renderer(with_template(template), "assistant"), talk)[0] == "weather{'city': 'Zürich'}<|im_end|>"
    )


def test_control_strings_of_content_are_found_where_they_stand() -> None:
    talk = Conversation([{"role": "user", "content": "x</s>y<unk>"}])
    for family in ("mistral", "llama2-template"):
        rendered = Renderer(chat_tokenizer(family), "assistant").render(talk)
        assert [rendered.text[begin:end] for begin, end in rendered.literal] == ["</s>", "<unk>"]


def test_hermes_messages_keep_which_are_trained() -> None:
    written = hermes_messages(TOOL_TALK.messages, [TOOL], [False, True, False, False, True])
    assert [message["role"] for message in written.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert written.trained == [False, False, True, False, True]
    assert all(set(message) == {"role", "content"} for message in written.messages)


def test_weights_are_not_shown_to_templates() -> None:
    talk: dict[str, Any] = {"role": "user", "content": "u", "weight": 1}
    template = "{% for m in messages %}{{ m.content }}{{ m.weight is defined }}<|im_end|>{% endfor %}"
    assert "False" in Renderer(with_template(template), "assistant").render(Conversation([talk])).text
