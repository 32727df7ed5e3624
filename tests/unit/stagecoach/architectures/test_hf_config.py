"""What is written into config.json so that both lines of transformers read it."""

from __future__ import annotations

import pytest

from stagecoach.architectures.hf_config import with_both_spellings
from stagecoach.architectures.registry import ModelSpec
from tests.tiny_models import CONFIGS


def test_the_old_spelling_stays_as_it_is() -> None:
    base = {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "float16", "x": 1}
    assert with_both_spellings(base, "bfloat16") == {**base, "torch_dtype": "bfloat16", "dtype": "bfloat16"}


def test_the_new_spelling_gets_the_old_one_beside_it() -> None:
    new = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}
    written = with_both_spellings(new, "float32")
    assert written["rope_theta"] == 1e6
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert written["rope_parameters"] == new["rope_parameters"]


def test_no_scaling_is_null_in_the_old_spelling() -> None:
    written = with_both_spellings({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "float32")
    assert (written["rope_theta"], written["rope_scaling"]) == (1e6, None)


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_written_means_the_same(family: str) -> None:
    written = with_both_spellings(CONFIGS[family], "float16")
    old_only = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype")}
    assert ModelSpec.from_hf_config(written) == ModelSpec.from_hf_config(CONFIGS[family])
    assert ModelSpec.from_hf_config(old_only) == ModelSpec.from_hf_config(CONFIGS[family])
