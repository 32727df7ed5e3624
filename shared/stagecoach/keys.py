"""How a content key is made: the same work has the same key, on any machine, in any run.

key = first 20 hex digits of sha256 over canonical JSON of {stage, output version, result fields that differ from their
defaults, keys of the inputs}. What a run only records (revision, image, time, host, layout) never enters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stagecoach.recipe.base import Section, result_fields

KEY_HEX_DIGITS = 20


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces, and non-ASCII escaped, so that equal values give equal bytes.

    Raises:
        ValueError: The value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(stage: str, output_version: int, config: Section, input_keys: Mapping[str, str]) -> str:
    """Return the key of the output that ``stage`` makes from this config and these inputs.

    Args:
        stage: Name of the task, as in ``stages.TASKS``.
        output_version: Version of the stage's output; a changed byte for the same config needs a new one.
        config: The stage's resolved config; only its result fields count.
        input_keys: Content key of each input, by input name.
    """
    identity = {
        "stage": stage,
        "output_version": output_version,
        "config": result_fields(config),
        "inputs": dict(input_keys),
    }
    return hashlib.sha256(canonical_json(identity).encode("ascii")).hexdigest()[:KEY_HEX_DIGITS]
