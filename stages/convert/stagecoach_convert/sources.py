"""Opens whatever kind of weight files a base model comes in, and says what its config.json is."""

from __future__ import annotations

from typing import Any

from stagecoach.errors import DataError
from stagecoach.formats.hf_model import (
    CONFIG_JSON,
    WEIGHTS,
    WEIGHTS_INDEX,
    HubSafetensors,
    TensorSource,
    read_json_object,
)
from stagecoach.outputs import Input
from stagecoach.source_files import original_checkpoint
from stagecoach_convert.megatron import MegatronSource
from stagecoach_convert.torch_source import TORCH_INDEX, TORCH_WEIGHTS, HubTorch


def open_source(model: Input, num_tokens: int) -> tuple[dict[str, Any], TensorSource]:
    """Return the base model's config.json and its tensors.

    Known are safetensors, ``pytorch_model.bin`` and checkpoints of the original system.

    Args:
        model: The base model's directory.
        num_tokens: Ids of the final tokenizer; tells padding rows of an original checkpoint from real ones.

    Raises:
        DataError: The directory holds no weights of a known form, or they are damaged.
    """
    names = model.names()
    origin = model.prefix.rstrip("/")
    config: dict[str, Any] | None = None
    if CONFIG_JSON in names:
        config = read_json_object(model.read_bytes(CONFIG_JSON), f"{model.prefix}{CONFIG_JSON}")
    if (checkpoint := original_checkpoint(names, origin)) is not None:
        source = MegatronSource(checkpoint, model.path, origin, num_tokens, config)
        return source.config, source
    if config is None:
        raise DataError(
            f"{model.prefix}: expected a {CONFIG_JSON}, the model's directory holds {', '.join(names)[:300]}"
        )
    if WEIGHTS in names or WEIGHTS_INDEX in names:
        return config, HubSafetensors(names, model.path, origin)
    if TORCH_WEIGHTS in names or TORCH_INDEX in names:
        return config, HubTorch(names, model.path, origin)
    raise DataError(
        f"{model.prefix}: expected {WEIGHTS}, {TORCH_WEIGHTS} or an index of one of them, the model's directory holds"
        f" {', '.join(names)[:300]}"
    )
