"""Each schema becomes the one normal form; what does not fit is named by field, expectation and finding."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stagecoach.recipe.data import DataSource
from stagecoach.recipe.source import EmbeddedSource
from stagecoach_pack.conversation import Conversation
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources.schemas import RowReader, detect_format

CALL: dict[str, Any] = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def read(row: Any, **options: Any) -> Conversation:
    source = DataSource(name="s", source=EmbeddedSource(), **options)
    return RowReader(source, detect_format(row, source.columns) if source.format == "auto" else source.format).read(row)


def turns(row: Any, **options: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in read(row, **options).messages]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(
            {"id": "a/1", "conversations": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            [("system", "s"), ("user", "u")],
            id="original",
        ),
        pytest.param(
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "u"}, "v"]},
                ]
            },
            [("system", "s"), ("user", "uv")],
            id="OpenAI with parts",
        ),
        pytest.param(
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"},
            [("system", "s"), ("user", "u"), ("assistant", "a")],
            id="ShareGPT",
        ),
        pytest.param({"items": [{"from": "human", "value": "u"}]}, [("user", "u")], id="ShareGPT items"),
        pytest.param(
            {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["u", "a"]]},
            [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "i\nx"), ("assistant", "o")],
            id="Alpaca",
        ),
        pytest.param(
            {"instruction": "i", "input": "", "output": "o"}, [("user", "i"), ("assistant", "o")], id="Alpaca bare"
        ),
        pytest.param(
            {"prompt": "p", "completion": "c"}, [("user", "p"), ("assistant", "c")], id="prompt and completion"
        ),
        pytest.param(
            {"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "c"}]},
            [("user", "p"), ("assistant", "c")],
            id="prompt and completion as messages",
        ),
        pytest.param(
            {"source": "x", "conversation": [{"input": "u", "output": "a"}, {"input": "v", "output": "b"}]},
            [("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")],
            id="input and output",
        ),
        pytest.param(
            {"data": ["u", "a", "v"]}, [("user", "u"), ("assistant", "a"), ("user", "v")], id="alternating texts"
        ),
        pytest.param(
            {"id": "cot.1", "system_prompt": "", "question": "q", "response": "r"},
            [("system", ""), ("user", "q"), ("assistant", "r")],
            id="OpenOrca keeps an empty system message",
        ),
    ],
)
def test_every_schema_is_detected_and_read(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(row) == expected


def test_columns_may_have_other_names() -> None:
    assert turns({"q": "i", "a": "o"}, columns={"instruction": "q", "output": "a"}) == [
        ("user", "i"),
        ("assistant", "o"),
    ]


def test_further_roles_may_be_named() -> None:
    assert turns({"messages": [{"role": "oracle", "content": "x"}]}, roles={"oracle": "assistant"}) == [
        ("assistant", "x")
    ]


def test_a_system_message_is_added_where_there_is_none() -> None:
    with_own = {"messages": [{"role": "system", "content": "own"}]}
    without = {"messages": [{"role": "user", "content": "u"}]}
    assert turns(with_own, system="mine") == [("system", "own")]
    assert turns(without, system="mine") == [("system", "mine"), ("user", "u")]


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"id": "call_1", **CALL},
        {"function": {"name": "f", "arguments": '{"x": 1}'}},
        {"name": "f", "arguments": {"x": 1}},
    ],
)
def test_tool_calls_have_one_form(call: dict[str, Any]) -> None:
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [TOOL["function"]]}
    talk = read(row)
    assert talk.messages == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert talk.tools == [TOOL]


def test_sharegpt_calls_and_results_are_read() -> None:
    row = {
        "conversations": [
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": 1}})},
            {"from": "observation", "value": "7"},
        ],
        "tools": json.dumps([TOOL]),
    }
    assert read(row).messages == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "7"},
    ]


def test_weights_ids_and_names_are_understood() -> None:
    talk = read(
        {
            "id": 7,
            "messages": [
                {"role": "user", "content": "u", "name": "Ada"},
                {"role": "assistant", "content": "a", "weight": 0.0, "refusal": None},
                {"role": "tool", "content": "t", "tool_call_id": "x"},
            ],
        }
    )
    assert talk.identity == "7"
    assert talk.messages[1] == {"role": "assistant", "content": "a", "weight": 0}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", **fields}]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([1], "row: expected a JSON object; put a list of messages under 'messages'"),
        (5, "row: expected a JSON object, found 5"),
        ({"messages": []}, "messages: expected at least one message"),
        ({"role": "user", "content": "u"}, "row: expected a conversation, a list of messages under 'messages'"),
        ({"talk": []}, "row: expected one of the schemas"),
        ({"conversations": ' [{"role"'}, "conversations: expected a list, found a text that holds one as JSON"),
        (
            {"data": [{"messages": [{"role": "user", "content": "u"}]}]},
            "row: expected one conversation; write the rows of",
        ),
        ({"rows": [{"messages": []}], "n": 1}, "row: expected one conversation; write the rows of 'rows' one a line"),
        ({"text": "x"}, "row: expected one of the schemas"),
        (message(role="robot"), "messages[1].role: expected one of assistant, bard"),
        (message(role=None), "messages[1].role: expected one of"),
        (message(role=["user"]), "messages[1].role: expected one of"),
        (
            message(content=None),
            "messages[1].content: expected text or a list of text parts (null only beside tool calls)",
        ),
        (message(content=5), "messages[1].content: expected text or a list of text parts, found 5"),
        (message(content=[{"type": "image_url"}]), "messages[1].content[0]: expected a content part of type text"),
        (message(reasoning_content="hm"), "messages[1].reasoning_content: expected an object without it"),
        (message(weight=0.5), "messages[1].weight: expected 0 or 1, found 0.5"),
        (message(weight="1"), "messages[1].weight: expected 0 or 1"),
        (message(tool_calls={}), "messages[1]"),
        (message(tool_calls="f()"), "messages[1].tool_calls: expected a list"),
        (
            message(tool_calls=[{"function": {}}]),
            "messages[1].tool_calls[0].function.name: expected the name of a function",
        ),
        (message(tool_calls=[{"name": "f", "arguments": "{"}]), "function.arguments: expected a JSON object"),
        (message(tool_calls=[{"name": "f", "arguments": [1]}]), "function.arguments: expected a JSON object"),
        (
            message(role="user", tool_calls=[CALL]),
            "messages[1].tool_calls: expected tool calls in assistant messages only",
        ),
        ({**message(), "tools": "{"}, "tools: expected a JSON list of tools"),
        ({**message(), "tools": [1]}, "tools[0]: expected an object with a name"),
        (
            {"messages": [{"role": "user", "content": "u"}, "hi"]},
            "messages[1]: expected an object {role, content}, found 'hi'",
        ),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].value: expected text, found None"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "conversations[0].from: expected one of"),
        (
            {"conversations": [{"from": "function_call", "value": "f()"}]},
            "conversations[0].value: expected JSON {name, arguments}",
        ),
        ({"instruction": "i", "output": 3}, "output: expected text, found 3"),
        ({"instruction": "i", "output": "o", "history": [["u"]]}, "history[0]: expected a pair of texts"),
        ({"prompt": "p", "completion": None}, "completion: expected text or a list of messages"),
        ({"conversation": [{"input": "u"}]}, "conversation[0]: expected an object {input, output} of texts"),
    ],
)
def test_what_does_not_fit_is_named(row: Any, problem: str) -> None:
    if problem == "messages[1]":
        assert read(row).messages[1]["content"] == "a"  # an empty object of calls is no call
        return
    with pytest.raises(RowProblem) as caught:
        read(row)
    assert str(caught.value).startswith(problem) or problem in str(caught.value)


def test_an_unknown_field_may_be_dropped_by_name() -> None:
    row = {"messages": [{"role": "user", "content": "u", "timestamp": 12}]}
    assert turns(row, ignore_fields=("timestamp",)) == [("user", "u")]


def test_a_first_row_of_many_lists_in_each_other_is_a_problem_as_others_are() -> None:
    row: dict[str, Any] = {"a": 1}
    for _ in range(2000):
        row = {"a": [row]}
    with pytest.raises(RowProblem, match="expected one of the schemas"):
        detect_format(row, {})


def test_the_schema_of_the_first_row_is_required_of_the_others() -> None:
    reader = RowReader(DataSource(name="s", source=EmbeddedSource()), "messages")
    with pytest.raises(RowProblem, match=r"messages: expected a list of \{role, content\} .* as in the first row"):
        reader.read({"instruction": "i", "output": "o"})


def test_a_weight_counts_for_calls_too() -> None:
    call = '{"name": "f", "arguments": {}}'
    sharegpt = {"conversations": [{"from": "function_call", "value": call, "weight": 0}]}
    openai = {"messages": [{"role": "tool_call", "content": call, "weight": 0}]}
    assert [read(row).messages[0]["weight"] for row in (sharegpt, openai)] == [0, 0]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"conversations": [{"from": "human", "value": "u", "thought": "lost"}]},
            r"conversations\[0\]\.thought: expected",
        ),
        ({"conversations": [{"from": "system", "value": "a"}], "system": "b"}, "one, in the column or as a turn"),
        ({"instruction": "i", "output": "o", "history": 5}, "history: expected a list of pairs, found 5"),
    ],
)
def test_nothing_of_a_row_is_lost_in_silence(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RowProblem, match=sentence):
        read(row)


USER = {"role": "user", "content": "u"}
OF_EVERY_SCHEMA: tuple[dict[str, Any], ...] = (
    {"messages": [USER]},
    {"conversations": [{"from": "human", "value": "u"}]},
    {"instruction": "u", "output": "a"},
    {"prompt": "u", "completion": "a"},
    {"conversation": [{"input": "u", "output": "a"}]},
    {"data": ["u", "a"]},
)


@pytest.mark.parametrize("row", OF_EVERY_SCHEMA, ids=lambda row: next(iter(row)))
def test_system_and_tools_beside_a_conversation_are_read_in_every_schema(row: dict[str, Any]) -> None:
    pirate = {"role": "system", "content": "You are a pirate."}
    for name in ("tools", "functions"):
        talk = read({**row, "system": "You are a pirate.", name: [TOOL], "other": 5}, system="the recipe's")
        assert talk.messages[:2] == [pirate, USER]
        assert talk.tools == [TOOL]
    plain = read({**row, "system": "", "tools": "[]", "functions": None}, system="the recipe's")
    assert (plain.messages[0]["content"], plain.tools) == ("the recipe's", None)
    with pytest.raises(RowProblem, match="functions: expected none beside 'tools'"):
        read({**row, "tools": [TOOL], "functions": [TOOL]})
    with pytest.raises(RowProblem, match="system: expected text, found 5"):
        read({**row, "system": 5})
    dropped = read({**row, "system": 5, "tools": 5}, ignore_fields=("system", "tools"))
    assert (dropped.messages[0], dropped.tools) == (USER, None)


def test_a_system_column_that_repeats_the_first_message_is_no_second_one() -> None:
    system = {"role": "system", "content": "s"}
    assert turns({"system": "s", "messages": [system, USER]}) == [("system", "s"), ("user", "u")]
    for messages, column in (([system, USER], "other"), ([USER, system], "s")):
        with pytest.raises(RowProblem, match="system: expected one, in the column or as a turn"):
            read({"system": column, "messages": messages})
    with pytest.raises(RowProblem, match="sys: expected one, in the column or as a turn, found 's'"):
        read({"sys": "s", "system_prompt": "", "question": "q", "response": "r"}, columns={"system": "sys"})


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"name": "f", "arguments": None, "parameters": {"x": 1}}, ""),
        ({"name": "f", "arguments": {"x": 1}, "parameters": None, "function": None}, ""),
        ({"type": "function", "index": 0, "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}, ""),
        ({"name": "f", "arguments": {"x": 1}, "parameters": {}}, "parameters: expected none beside 'arguments'"),
        ({**CALL, "result": "42"}, "result: expected an object without it"),
        ({"name": "f", "arguments": {"x": 1}, "result": "42"}, "result: expected an object without it"),
        ({"function": {**CALL["function"], "weight": 0}}, "function.weight: expected an object without it"),
    ],
)
def test_nothing_of_a_call_is_lost_in_silence(call: dict[str, Any], problem: str) -> None:
    as_text = json.dumps(call)
    for row in (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]},
        {"messages": [{"role": "tool_call", "content": as_text}]},
        {"conversations": [{"from": "function_call", "value": as_text}]},
    ):
        if not problem:
            assert read(row).messages[0]["tool_calls"] == [CALL]
            continue
        with pytest.raises(RowProblem) as caught:
            read(row)
        assert problem in str(caught.value)
        if "without it" in problem:
            dropped = read(row, ignore_fields=(problem.split(":")[0].rsplit(".", 1)[-1],))
            assert dropped.messages[0]["tool_calls"] == [CALL]


def test_nothing_of_a_part_or_a_turn_is_lost_in_silence() -> None:
    for row, place in (
        (message(content=[{"type": "text", "text": "a", "weight": 0}]), r"messages\[1\]\.content\[0\]\.weight"),
        (message(role="tool_call", content='{"name": "f"}', tool_calls=[CALL]), r"messages\[1\]\.tool_calls"),
        ({"conversation": [{"input": "u", "output": "a", "weight": 0}]}, r"conversation\[0\]\.weight"),
    ):
        with pytest.raises(RowProblem, match=f"{place}: expected an object without it"):
            read(row)
    assert turns(message(content=[{"type": "text", "text": "a", "annotations": []}]))[1] == ("assistant", "a")


def test_columns_of_mixed_types_are_read_whatever_the_first_rows_hold() -> None:
    """A reader that takes the types of its columns from the first rows fails on the third of these, or loses it."""
    call = {"name": "f", "arguments": {"x": [1, "2", None]}}
    contents: list[Any] = ["text", "text", [{"type": "text", "text": "a"}, "b"], None, ""]
    arguments: list[Any] = ["{}", '{"x": 1}', {"x": 1}, {"x": "1"}, call["arguments"]]
    reader = RowReader(DataSource(name="s", source=EmbeddedSource()), "messages")
    found: list[tuple[str, Any]] = []
    for content, given in zip(contents, arguments, strict=True):
        calls = [{"type": "function", "id": 5, "function": {**call, "arguments": given}}]
        row = {"id": len(found), "messages": [{"role": "assistant", "content": content, "tool_calls": calls}]}
        (message,) = reader.read(row).messages
        found.append((message["content"], message["tool_calls"][0]["function"]["arguments"]))
    assert found == [("text", {}), ("text", {"x": 1}), ("ab", {"x": 1}), ("", {"x": "1"}), ("", {"x": [1, "2", None]})]


def test_alternating_rows_that_hold_something_else_are_problems() -> None:
    with pytest.raises(RowProblem, match=r"data\[1\]: expected text, found 5"):
        read({"data": ["u", 5]}, format="alternating")
    with pytest.raises(RowProblem, match="data: expected a list, found 'u'"):
        read({"data": "u"}, format="alternating")
    for texts in (["u", {"role": "user"}], []):  # an empty list would decide for all rows behind it
        with pytest.raises(RowProblem, match="expected one of the schemas"):
            read({"data": texts})
