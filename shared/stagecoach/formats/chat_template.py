"""The ChatML chat template that Stagecoach ships, and the sandbox in which any tokenizer's template is rendered.

    <|im_start|>system
    You are kind.<|im_end|>
    <|im_start|>user
    Hi<|im_end|>
    <|im_start|>assistant
    Hello!<|im_end|>

There is no default system message and nothing is trimmed. Every message is rendered by itself, so the text of the
first n messages is always the beginning of the whole text. Tools follow the Hermes form, which vLLM and llama.cpp
parse: signatures in ``<tools>`` at the end of the system message, calls in ``<tool_call>``, results in
``<tool_response>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from stagecoach.errors import DataError

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

HERMES_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
HERMES_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

_CHATML_BODY = """\
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- elif content is iterable -%}
{%- for part in content -%}
{%- if part.type == 'text' -%}
{{- part.text -}}
{%- else -%}
{{- raise_exception('content part of type ' ~ part.type ~ ' is not text') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set first_is_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if first_is_system and text(messages[0].content) -%}
{{- text(messages[0].content) ~ '\\n\\n' -}}
{%- endif -%}
{{- BEFORE -}}
{%- for tool in tools -%}
{{- '\\n' ~ (tool | tojson) -}}
{%- endfor -%}
{{- AFTER ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' ~ text(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- if text(message.content) or not loop.first -%}
{{- '\\n' -}}
{%- endif -%}
{{- '<tool_call>\\n{"name": ' ~ (function.name | tojson) ~ ', "arguments": ' -}}
{{- function.arguments if function.arguments is string else (function.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>tool\\n<tool_response>\\n' ~ text(message.content) ~ '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'system' and loop.first and tools -%}
{%- elif message.role == 'system' or message.role == 'user' -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ text(message.content) ~ '<|im_end|>\\n' -}}
{%- else -%}
{{- raise_exception('role ' ~ message.role ~ ' is not one of system, user, assistant, tool') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def chatml_template(*, with_bos: bool) -> str:
    """Return the Jinja text of the shipped template; it opens with the BOS token where the tokenizer adds one."""
    body = _CHATML_BODY.replace("BEFORE", _jinja_string(HERMES_TOOLS_BEFORE), 1).replace(
        "AFTER", _jinja_string(HERMES_TOOLS_AFTER), 1
    )
    return ("{{- bos_token -}}\n" if with_bos else "") + body


def _jinja_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


class ChatTemplate:
    """One compiled chat template with the tokenizer's special tokens bound to it."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: str) -> None:
        """Compile a template.

        Args:
            source: Jinja text.
            special_tokens: ``bos_token``, ``eos_token``, .. as the template may name them.
            origin: Where the template comes from, for messages.

        Raises:
            DataError: The text is no valid template.
        """
        import jinja2

        self.source = source
        self.origin = origin
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise DataError(
                f"{origin}: expected a Jinja chat template, got one that does not compile: {error}"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the text of a conversation, as ``apply_chat_template(tokenize=False)`` of transformers does.

        Raises:
            DataError: The template refuses the conversation, or fails on it.
        """
        import jinja2

        try:
            text: str = self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
            return text
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise DataError(f"{self.origin}: the chat template refuses the conversation: {error}") from error


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Return a sandbox with the filters, tags and globals that transformers gives to chat templates, but for one.

    ``strftime_now`` stays undefined: a template that wrote today's date would give other tokens every day. Templates
    that ask whether it is defined fall back to a fixed date.
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class GenerationTag(jinja2.ext.Extension):
        """Accepts ``{% generation %}`` and renders what is inside."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own spelling

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers' filter of that name does: characters stay what they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> str:
    import jinja2

    raise jinja2.TemplateError(message)
