"""Tiny random models of transformers beside an engine with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from stagecoach.architectures.family import LLAMA_TENSORS
from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.engine import Engine
from stagecoach_train.results import Range

COMMON: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2,
    "vocab_size": 211, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

#: name -> (model_type, what differs from COMMON)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-3.1": ("llama", {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3}}),
    "mistral-window-8": ("mistral", {"sliding_window": 8}),
    "qwen2-bias": ("qwen2", {}),
    "qwen3-qk-norm": ("qwen3", {"head_dim": 16}),
}


def hub_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Make the transformers model with weights large enough that every part matters."""
    model_type, changes = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(COMMON | changes))
    config._attn_implementation = "eager"
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if parameter.dim() == 1 else 0.0))
    return model.eval()


def hub_config(model: Any) -> dict[str, Any]:
    """Return the content of its config.json."""
    content: dict[str, Any] = model.config.to_dict()
    return content


def native_of(spec: ModelSpec, hub: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Fuse the Hub's tensors: q.., k, v by key/value head; gate over up."""
    groups, queries, width = spec.num_kv_heads, spec.queries_per_group, spec.head_dim
    native = {}
    for tensor in native_tensors(spec):
        parts = [hub[name.format(layer=tensor.layer)] for name in LLAMA_TENSORS[tensor.part]]
        if tensor.kind == "qkv":
            q, k, v = parts
            rest = q.shape[1:]
            grouped = [q.reshape(groups, queries * width, *rest)] + [x.reshape(groups, width, *rest) for x in (k, v)]
            native[tensor.name] = np.concatenate(grouped, axis=1).reshape(tensor.shape)
        else:
            native[tensor.name] = np.concatenate(parts)
    return native


def hub_weights(model: Any) -> dict[str, npt.NDArray[Any]]:
    """Return its weights by Hub name."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def hub_gradients(model: Any) -> dict[str, npt.NDArray[Any]]:
    """Return its gradients by Hub name."""
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def engine_of(model: Any, shape: MicroBatchShape, num_micro_batches: int = 1, **config: Any) -> Engine:
    """Make a one-rank engine with the model's weights."""
    spec = ModelSpec.from_hf_config(hub_config(model))
    train = TrainConfig.model_validate({"steps": 50, "compute_dtype": "fp32"} | config)
    engine = Engine(train, spec, Topology(), torch.device("cpu"), num_micro_batches=num_micro_batches, shape=shape)
    native = native_of(spec, hub_weights(model))

    def read(name: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        found = native[name][rows[0] : rows[1]]
        return found if cols is None else found[:, cols[0] : cols[1]]

    engine.load_weights(read)
    return engine
