"""Content keys: what changes a key, and what must not."""

from typing import Literal

from stagecoach.keys import canonical_json, content_key
from stagecoach.recipe.base import Section, placement, result


class _Inner(Section):
    depth: int = result(1)
    where: str = placement("here")


class _Cat(Section):
    kind: Literal["cat"] = result("cat")


class _Dog(Section):
    kind: Literal["dog"] = result("dog")


class _Config(Section):
    pet: _Cat | _Dog | None = result(None)
    seed: int = result(7)
    layout: int = placement(1)
    inner: _Inner = result(_Inner())
    items: tuple[_Inner, ...] = result(())


def _key(config: Section, **inputs: str) -> str:
    return content_key("pack", 1, config, inputs or {"data": "00"})


def test_a_key_is_pinned() -> None:
    # sha256 of {"config":{},"inputs":{"data":"00"},"output_version":1,"stage":"pack"}
    assert _key(_Config()) == "b0654e34bf15a1c304d4"


def test_a_result_field_changes_the_key() -> None:
    assert _key(_Config(seed=8)) != _key(_Config())
    assert _key(_Config(inner=_Inner(depth=2))) != _key(_Config())
    assert _key(_Config(items=(_Inner(),))) != _key(_Config())


def test_a_placement_field_does_not() -> None:
    assert _key(_Config(layout=8, inner=_Inner(where="there"))) == _key(_Config())


def test_a_field_at_its_default_counts_as_absent() -> None:
    assert _key(_Config(seed=7)) == _key(_Config())


def test_two_kinds_of_section_never_look_alike() -> None:
    assert _key(_Config(pet=_Cat())) != _key(_Config(pet=_Dog()))


def test_stage_version_and_inputs_change_the_key() -> None:
    plain = _key(_Config())
    assert content_key("pack", 2, _Config(), {"data": "00"}) != plain
    assert content_key("shard", 1, _Config(), {"data": "00"}) != plain
    assert _key(_Config(), data="01") != plain


def test_canonical_json_is_independent_of_order() -> None:
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"\\u00fc","b":1}' == canonical_json({"a": "ü", "b": 1})
