"""What the data and pack sections refuse, and which of their fields make a key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stagecoach.recipe.base import result_fields
from stagecoach.recipe.data import DataConfig
from stagecoach.recipe.pack import PackConfig

SOURCE: dict[str, Any] = {"name": "a", "source": {"kind": "embedded"}}


def data(*sources: dict[str, Any], **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "d", "sources": sources, **fields})


def test_the_place_of_a_source_is_no_part_of_the_key() -> None:
    elsewhere = {"name": "a", "source": {"kind": "s3", "url": "s3://bucket/chat"}}
    assert result_fields(data(SOURCE)) == result_fields(data(elsewhere))
    assert result_fields(data({**SOURCE, "weight": 2.0})) != result_fields(data(SOURCE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "A b"}, "data source name: expected 1 to 63 characters"),
        ({"weight": 0}, "greater than 0"),
        ({"rows": 0}, "greater than 0"),
        ({"roles": {"bot": "robot"}}, "'system', 'user', 'assistant' or 'tool'"),
        ({"format": "csv"}, "Input should be 'auto', 'messages'"),
        ({"source": {"kind": "ftp"}}, "does not match any of the expected tags"),
        ({"source": {"kind": "hub", "repo": "a/b/c"}}, "expected a Hub repository such as owner/name"),
        ({"source": {"kind": "s3", "url": "http://x"}}, "expected an address such as s3://bucket/prefix"),
        ({"extra": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_source_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        data({**SOURCE, **change})


def test_source_names_are_distinct() -> None:
    with pytest.raises(ValidationError, match="expected distinct source names, got a more than once"):
        data(SOURCE, SOURCE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"too_long": "split"}, "pack_tokens"),
        ({"pack_tokens": 64}, "too_long"),  # explicit in every recipe
        ({"pack_tokens": 4, "too_long": "split"}, "greater than or equal to 8"),
        ({"pack_tokens": 64, "too_long": "split", "heldout_share": 1.0}, "less than 1"),
        ({"pack_tokens": 64, "too_long": "split", "heldout_share": 0.1, "heldout_num": 3}, "not both, got 0.1 and 3"),
    ],
)
def test_a_wrong_pack_section_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PackConfig.model_validate(fields)
