"""Opens whatever kind of weight files a base model comes in."""

from __future__ import annotations

from stagecoach.errors import DataError
from stagecoach.formats.hf_model import WEIGHTS, WEIGHTS_INDEX, HubSafetensors, TensorSource
from stagecoach.outputs import Input


def open_source(model: Input) -> TensorSource:
    """Return the base model's tensors.

    Raises:
        DataError: The directory holds no weights of a known form, or they are damaged.
    """
    names = model.names()
    if WEIGHTS in names or WEIGHTS_INDEX in names:
        return HubSafetensors(names, model.path, model.prefix.rstrip("/"))
    raise DataError(
        f"{model.prefix}: expected {WEIGHTS} or {WEIGHTS_INDEX}, the model's directory holds"
        f" {', '.join(names)[:300]}"
    )
