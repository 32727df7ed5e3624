"""The base of every recipe section, and the two kinds of field that decide what enters a content key.

A field is either *result* (it changes the bits of the output, so it is part of the output's key) or *placement* (the
same mathematics done elsewhere or otherwise: recorded in the manifest, never in a key). A field without a kind is
refused when the class is made, so that nobody can forget to choose.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError

_EFFECT = "x-effect"
_WORD_LIMIT = 2**63


def result(default: Any = ..., **options: Any) -> Any:
    """Declare a field that changes the output's bits; it enters the key wherever it differs from its default."""
    return _field("result", default, options)


def placement(default: Any = ..., **options: Any) -> Any:
    """Declare a field that changes where or how the work is done, but not its mathematics; it never enters a key."""
    return _field("placement", default, options)


def _field(effect: str, default: Any, options: dict[str, Any]) -> Any:
    if "default_factory" in options:
        return Field(json_schema_extra={_EFFECT: effect}, **options)
    return Field(default, json_schema_extra={_EFFECT: effect}, **options)


def effect_of(field: FieldInfo) -> str | None:
    """Return ``"result"``, ``"placement"``, or None for a field that was declared with neither."""
    extra = field.json_schema_extra
    return str(extra[_EFFECT]) if isinstance(extra, dict) and _EFFECT in extra else None


class Section(BaseModel):
    """One section of a recipe: immutable, unknown fields refused, every field marked result or placement."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @field_validator("*")
    @classmethod
    def _fits_a_machine_word(cls, value: Any) -> Any:
        """Refuse a whole number that numpy, a float or a seed could not hold, so that no stage stumbles over it."""
        if isinstance(value, int) and value >= _WORD_LIMIT:
            raise PydanticKnownError("less_than", {"lt": _WORD_LIMIT})
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a section whose author did not say which fields change the result."""
        unmarked = [name for name, field in cls.model_fields.items() if effect_of(field) is None]
        if unmarked:
            raise TypeError(f"{cls.__name__}: mark {', '.join(unmarked)} with result(..) or placement(..)")


def result_fields(section: BaseModel) -> dict[str, Any]:
    """Return the result fields that differ from their defaults, as canonical JSON values, nested sections included.

    Only differences are listed so that a new field with an unchanged default keeps every existing key valid. The tag of
    a union (a field with a single possible value) is always listed, so that two kinds of section never look alike.
    """
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if effect_of(field) != "result":
            continue
        value = _canonical(getattr(section, name))
        always = _is_tag(field) or field.is_required()
        if always or value != _canonical(field.get_default(call_default_factory=True)):
            found[name] = value
    return found


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _canonical(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return result_fields(value)
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in sorted(value.items())}
    return value
