"""Makes a tiny model and its tokenizer from a seed, as if they had come from the Hub.

The files have a Hub repository's names and forms, so that every later stage treats them like any other model. The bytes
are the same on every machine: weights come from counter-based integers, and SentencePiece trains on one thread.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stagecoach.demo.chat import demo_chat_sha256, demo_conversations
from stagecoach.errors import ConfigError, CorruptObjectError
from stagecoach.formats.tensor_file import TensorToWrite, write_tensor_file
from stagecoach.random_bits import normal_parts
from stagecoach.recipe.download import SeedIdentity
from stagecoach.recipe.seed import SeedModel

Array = npt.NDArray[Any]
_FLOAT32 = np.dtype("<f4")

BOS_ID, EOS_ID = 1, 2


def check_text(identity: SeedIdentity) -> None:
    """Refuse to work with another text than the one that was planned with.

    Raises:
        CorruptObjectError: The embedded chat set differs, because plan and stage are of different versions.
    """
    if identity.text_sha256 != demo_chat_sha256():
        raise CorruptObjectError(
            f"the embedded chat set: expected sha256 {identity.text_sha256[:12]}.., got {demo_chat_sha256()[:12]}..;"
            " run the stage in the version of Stagecoach that made the plan"
        )


def config_json(model: SeedModel) -> bytes:
    """Return the config.json of a MistralForCausalLM with these dimensions."""
    values = {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "dtype": "float32",
        "eos_token_id": EOS_ID,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_position_embeddings,
        "model_type": "mistral",
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_kv_heads,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "rope_theta": model.rope_theta,
        "sliding_window": model.sliding_window,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": model.vocab_size,
    }
    return (json.dumps(values, indent=2) + "\n").encode()


def write_weights(model: SeedModel, stream: BinaryIO) -> None:
    """Write model.safetensors: float32, Hub names, one tensor at a time."""
    tensors = [
        TensorToWrite(
            name, _FLOAT32, shape, _ones(shape) if std is None else partial(_normal, model.seed, name, shape, std)
        )
        for name, shape, std in tensor_plan(model)
    ]
    write_tensor_file(stream, tensors, metadata={"format": "pt"})


def tensor_plan(model: SeedModel) -> list[tuple[str, tuple[int, ...], float | None]]:
    """Return (Hub name, shape, standard deviation or None for a norm's ones) of every tensor.

    Output and down projections are drawn smaller by sqrt(2 x num_layers), because each of them adds to the residual
    stream: the stream then starts with the same spread whatever the depth.
    """
    std = model.init_std
    small = std / math.sqrt(2 * model.num_layers)
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    plan: list[tuple[str, tuple[int, ...], float | None]] = [
        ("model.embed_tokens.weight", (model.vocab_size, hidden), std)
    ]
    for layer in range(model.num_layers):
        parts: tuple[tuple[str, tuple[int, ...], float | None], ...] = (
            ("input_layernorm", (hidden,), None),
            ("self_attn.q_proj", (queries, hidden), std),
            ("self_attn.k_proj", (keys, hidden), std),
            ("self_attn.v_proj", (keys, hidden), std),
            ("self_attn.o_proj", (hidden, queries), small),
            ("post_attention_layernorm", (hidden,), None),
            ("mlp.gate_proj", (inner, hidden), std),
            ("mlp.up_proj", (inner, hidden), std),
            ("mlp.down_proj", (hidden, inner), small),
        )
        plan.extend((f"model.layers.{layer}.{name}.weight", shape, spread) for name, shape, spread in parts)
    plan.append(("model.norm.weight", (hidden,), None))
    plan.append(("lm_head.weight", (model.vocab_size, hidden), std))
    return plan


def tokenizer_model(model: SeedModel) -> bytes:
    """Return a SentencePiece BPE tokenizer.model with ``vocab_size`` pieces, trained on the embedded chat set.

    The ChatML tokens are control symbols (ids 3 and 4): text that spells them never becomes them.

    Raises:
        ConfigError: The text needs more pieces than that, or cannot fill as many.
    """
    import sentencepiece  # loads a C++ library that fetching files does not need

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_texts(),
            model_writer=written,
            model_type="bpe",
            vocab_size=model.vocab_size,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            control_symbols=["<|im_start|>", "<|im_end|>"],
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            num_threads=1,  # the number is stored in the file
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"model.source.vocab_size: SentencePiece cannot make {model.vocab_size} pieces of the demo chat: {error}"
        ) from error
    return written.getvalue()


def _texts() -> Iterator[str]:
    """Yield what the model will read and write, line by line: roles, messages, and the JSON of each tool call.

    No text holds a line break, so that it stays the byte piece <0x0A>, as in Llama's and Mistral's tokenizers: a piece
    of a line break and what follows would join a role's line with the beginning of an answer.
    """
    for conversation in demo_conversations():
        for message in conversation["messages"]:
            yield message["role"]
            yield from filter(None, message["content"].split("\n"))
            for call in message.get("tool_calls", ()):
                function = call["function"]
                arguments = json.loads(function["arguments"])
                text = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
                yield from ("<tool_call>", text, "</tool_call>")


def _normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> Iterator[Array]:
    return ((part * std).astype(_FLOAT32) for part in normal_parts(seed, f"seed model: {name}", shape))


def _ones(shape: tuple[int, ...]) -> Callable[[], Array]:
    return lambda: np.ones(shape, dtype=_FLOAT32)
