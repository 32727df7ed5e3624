"""Checkpoints in the layout of the original system, made from the weights of a Hub model."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stagecoach.formats.tensor_file import Array
from tests.tiny_models import CONFIGS, hub_arrays

torch = pytest.importorskip("torch")

CONFIG: dict[str, Any] = {**CONFIGS["mistral"], "num_hidden_layers": 4}
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def torch_bytes(content: Any) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def interleaved(rows: Array, num_heads: int) -> Array:
    """Half-split rows of each head -> the original's adjacent pairs, as its own converter did it."""
    heads = torch.from_numpy(rows.copy()).view(num_heads, 2, HEAD_DIM // 2, rows.shape[1])
    flat: Array = heads.transpose(1, 2).reshape(rows.shape).numpy()
    return flat


def original_layer(hub: dict[str, Array], layer: int) -> dict[str, Array]:
    """One layer in the original's layout, before it is cut."""
    prefix = f"model.layers.{layer}."
    q = interleaved(hub[f"{prefix}self_attn.q_proj.weight"], HEADS)
    k = interleaved(hub[f"{prefix}self_attn.k_proj.weight"], KV_HEADS)
    v = hub[f"{prefix}self_attn.v_proj.weight"]
    group = HEADS // KV_HEADS * HEAD_DIM
    qkv = [
        part
        for g in range(KV_HEADS)
        for part in (q[g * group : (g + 1) * group], k[g * 8 : (g + 1) * 8], v[g * 8 : (g + 1) * 8])
    ]
    return {
        "attention.query_key_value.weight": np.concatenate(qkv),
        "attention.dense.weight": hub[f"{prefix}self_attn.o_proj.weight"],
        "input_layernorm.weight": hub[f"{prefix}input_layernorm.weight"],
        "post_attention_layernorm.weight": hub[f"{prefix}post_attention_layernorm.weight"],
        "mlp.dense_h_to_4h.weight": np.concatenate(
            [hub[f"{prefix}mlp.up_proj.weight"], hub[f"{prefix}mlp.gate_proj.weight"]]
        ),
        "mlp.dense_4h_to_h.weight": hub[f"{prefix}mlp.down_proj.weight"],
    }


def cut_layer(name: str, array: Array, tp: int, rank: int) -> Array:
    """One tensor rank's part."""
    if name.endswith("layernorm.weight"):
        return array
    if name in ("attention.dense.weight", "mlp.dense_4h_to_h.weight"):
        return np.split(array, tp, axis=1)[rank]
    if name == "mlp.dense_h_to_4h.weight":
        up, gate = np.split(array, 2)
        return np.concatenate([np.split(up, tp)[rank], np.split(gate, tp)[rank]])
    return np.split(array, tp)[rank]


def original_files(
    tp: int,
    pp: int,
    *,
    nested: bool,
    iteration: str = "release",
    file_name: str = "model_optim_rng.pt",
    padded: int = 384,
    tied: bool = False,
    change: Callable[[dict[str, Any], int, int], object] = lambda model, rank, stage: None,
) -> dict[str, bytes]:
    """The rank files of one checkpoint; vocabulary padded, layers numbered from 0 on each stage.

    ``file_name`` is ``model_rng.pt`` where a training sharded its optimizer; ``change`` may do something to a rank's model,
    given tensor rank and stage.
    """
    hub = hub_arrays({**CONFIG, "tie_word_embeddings": tied})
    vocab = {
        name: np.concatenate([hub[name], np.repeat(hub[name][-1:], padded - 320, 0)])
        for name in ("model.embed_tokens.weight", "lm_head.weight")[: 1 if tied else 2]
    }
    arguments = argparse.Namespace(
        num_layers=4,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_attention_heads_kv=2,
        max_position_embeddings=128,
        layernorm_epsilon=1e-5,
        rope_theta=10_000.0,
        sliding_window_size=8,
        tie_embed_logits=tied,
        params_dtype=torch.float32,
    )
    files = {"latest_checkpointed_iteration.txt": iteration.removeprefix("iter_").lstrip("0").encode()}
    block, attention = ("encoder", "self_attention.") if nested else ("transformer", "attention.")
    for stage in range(pp):
        for rank in range(tp):
            layers: dict[str, Any] = {}
            for local in range(4 // pp):
                for name, array in original_layer(hub, stage * (4 // pp) + local).items():
                    part = torch.from_numpy(cut_layer(name, array, tp, rank).copy())
                    renamed = name.replace("attention.", attention, 1) if name.startswith("attention.") else name
                    layers[f"layers.{local}.{renamed}"] = part
            language_model: dict[str, Any] = {block: layers}
            if stage == 0:
                words = torch.from_numpy(np.split(vocab["model.embed_tokens.weight"], tp)[rank].copy())
                language_model["embedding"] = (
                    {"word_embeddings": {"weight": words}} if nested else {"word_embeddings.weight": words}
                )
            if stage == pp - 1:
                layers["final_layernorm.weight"] = torch.from_numpy(hub["model.norm.weight"].copy())
                if not tied:
                    language_model["lm_head"] = torch.from_numpy(np.split(vocab["lm_head.weight"], tp)[rank].copy())
            folder = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")
            content = {"iteration": iteration, "checkpoint_version": 3.0, "args": arguments}
            model: dict[str, Any] = {"language_model": language_model}
            if tied and pp > 1 and stage == pp - 1:
                copy = torch.from_numpy(np.split(vocab["model.embed_tokens.weight"], tp)[rank].copy())
                model["word_embeddings_for_head"] = {"weight": copy}
            change(model, rank, stage)
            files[f"{iteration}/{folder}/{file_name}"] = torch_bytes({**content, "model": model})
    return files
