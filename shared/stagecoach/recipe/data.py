"""The data section of a recipe: which chat files are read, how their rows are understood, and how much of each is
taken.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from stagecoach.paths import validate_name
from stagecoach.recipe.base import Section, placement, result
from stagecoach.recipe.source import Source

RowFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "input_output", "openorca", "alternating"
]
"""How a row spells a conversation.

messages: a list of ``{role, content}`` under ``messages`` or ``conversations`` (the OpenAI form, tool calls included);
sharegpt: a list of ``{from, value}`` under ``conversations`` or ``items``; alpaca: ``instruction``, ``input``,
``output``, ``history``; prompt_completion: ``prompt``, ``completion``; input_output: a list of ``{input, output}`` under
``conversation``; openorca: ``system_prompt``, ``question``, ``response``; alternating: a list of texts under ``data``,
the user's first; auto: decided by the first row, confirmed on every row. All take ``system`` (a text) and ``tools`` or
``functions`` (a list) beside it.
"""

Prepare = Literal["none", "openorca_cot", "sharegpt", "codeact"]
"""A named chain of row filters; the pack report counts the rows after each of them."""

Role = Literal["system", "user", "assistant", "tool"]


class DataSource(Section):
    """One set of chat files."""

    name: str = result()
    """Short name; part of task names, reports and every document's trace."""
    source: Source = placement()
    """Where the files come from; the content of the files decides the key, not the place."""
    format: RowFormat = result("auto")
    """How a row spells a conversation."""
    columns: dict[str, str] = result(default_factory=dict)
    """Standard column name -> the name that these files use, such as ``instruction: question``."""
    roles: dict[str, Role] = result(default_factory=dict)
    """Further role names of these files, beside the well-known ones."""
    ignore_fields: tuple[str, ...] = result(())
    """Fields of a message, a part of one or a call that may be dropped, and ``system``, ``tools``, ``functions`` of a row;
    any other unknown field of a message with a value is a problem of its row.
    """
    prepare: Prepare = result("none")
    """Filters and repairs that this kind of data needs."""
    min_turns: Annotated[int, Field(ge=0)] = result(0)
    """Drop conversations with fewer messages."""
    system: str | None = result(None)
    """System message for conversations that have none."""
    rows: PositiveInt | None = result(None)
    """Take a random sample of this many conversations (as ``pandas.DataFrame.sample`` draws it); None takes all."""
    rows_seed: Annotated[int, Field(ge=0, lt=2**32)] = result(42)
    """Seed of that sample."""
    weight: Annotated[float, Field(gt=0, le=1000)] = result(1.0)
    """How often a conversation is in the training packs: 2 twice, 0.5 every second one, chosen by its hash."""

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return validate_name(name, "data source name")


class DataConfig(Section):
    """The chat data of a run."""

    name: str = placement()
    """Name of the mixture; part of where its packs lie."""
    sources: tuple[DataSource, ...] = result(min_length=1)
    """The sets that are mixed, in this order."""
    on_bad_row: Literal["stop", "drop"] = result("stop")
    """What happens to a row that cannot be read: stop and show the first ten, or drop it and count the reason."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = result(0.01)
    """Under ``drop``: refuse the source if a larger share of its rows is bad."""
    remove_duplicates: bool = result(True)
    """Keep only the first of conversations that are equal in every message and tool, whatever the ids of the rows and
    the weights of the messages: put the row whose weights shall count first.
    """

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return validate_name(name, "data name")

    @model_validator(mode="after")
    def _distinct_names(self) -> DataConfig:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"expected distinct source names, got {', '.join(twice)} more than once; rename one")
        return self
