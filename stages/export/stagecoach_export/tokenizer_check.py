"""Makes sure that the tokenizer which is shipped is the one that the model was converted and trained with.

The same file and the same template give the same ids and the same BOS rule, so that serving sees what training saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from stagecoach.errors import DataError
from stagecoach.formats.hf_model import read_json_object, vocabulary
from stagecoach.formats.native import NativeModel
from stagecoach.formats.packed import PACKED_JSON, read_packed_json
from stagecoach.outputs import Input
from stagecoach_export.configs import special_ids


def check_tokenizer(tokenizer: Input, model: NativeModel, packed: Input | None) -> dict[str, int]:
    """Return the ids of the special tokens: of ``configs.special_ids``.

    Args:
        tokenizer: The final tokenizer.
        model: The native model's description.
        packed: The packs that the model was trained on; None if they are not known.

    Raises:
        DataError: The tokenizer does not belong to the model or to the packs.
    """
    data = tokenizer.read_bytes("tokenizer.json")
    ids = vocabulary(data, f"{tokenizer.prefix}tokenizer.json")
    if max(ids.values()) >= model.spec.vocab_size:
        raise DataError(
            f"{tokenizer.prefix}: expected ids below the model's {model.spec.vocab_size} rows, got {max(ids.values())};"
            " take the tokenizer that this model was converted with"
        )
    if wrong := [token for token, row in model.new_tokens.items() if ids.get(token) != row]:
        raise DataError(
            f"{tokenizer.prefix}: expected {wrong[0]!r} at {model.new_tokens[wrong[0]]}, got {ids.get(wrong[0])};"
            " take the tokenizer that this model was converted with"
        )
    origin = f"{tokenizer.prefix}tokenizer_config.json"
    config = read_json_object(tokenizer.read_bytes("tokenizer_config.json"), origin)
    if packed is not None:
        _check_packs(tokenizer, data, config, packed)
    return special_ids(config, ids)


def _check_packs(tokenizer: Input, data: bytes, config: Mapping[str, Any], packed: Input) -> None:
    """Refuse a tokenizer whose ids or rendering (BOS rule, header, end) are not those of the packs."""
    description = read_packed_json(packed.read_bytes(PACKED_JSON))
    found = {
        "tokenizer_sha256": hashlib.sha256(data).hexdigest(),
        "chat_template_sha256": hashlib.sha256(str(config.get("chat_template")).encode()).hexdigest(),
    }
    for name, digest in found.items():
        if description.get(name) != digest:
            what = "tokenizer.json" if name == "tokenizer_sha256" else "chat template (BOS rule, headers, ends)"
            raise DataError(
                f"{tokenizer.prefix}: expected the {what} that {packed.prefix} was packed with"
                f" (sha256 {str(description.get(name))[:12]}..), got {digest[:12]}..; export with that tokenizer"
            )
