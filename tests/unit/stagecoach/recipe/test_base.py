"""Recipe sections: every field says what it does to the result, and nothing unknown gets in."""

import pytest
from pydantic import Field, ValidationError

from stagecoach.recipe.base import Section, placement, result, result_fields


class _Section(Section):
    a: int = result(1)
    b: int = placement(2)


def test_a_field_without_a_kind_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"mark c with result\(\.\.\) or placement\(\.\.\)"):

        class _Unmarked(Section):
            c: int = Field(1)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        _Section.model_validate({"z": 1})


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _Section().a = 3


def test_only_result_fields_off_their_default_are_listed() -> None:
    assert result_fields(_Section()) == {}
    assert result_fields(_Section(b=5)) == {}
    assert result_fields(_Section(a=5)) == {"a": 5}
