"""A Hub directory without a model: the files that a server's command line is made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def hub_files(**generation: Any) -> dict[str, bytes]:
    """Return the files of an export, with fields of generation_config.json changed."""
    config = {"num_attention_heads": 32, "num_key_value_heads": 8}
    return {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [4, 2], **generation}).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "model.safetensors": b"weights",
        "chat_template.jinja": b"{{ messages }} <tool_call>",
    }


def write_hub_folder(folder: Path, **generation: Any) -> Path:
    """Write such a directory."""
    folder.mkdir(parents=True)
    for name, data in hub_files(**generation).items():
        (folder / name).write_bytes(data)
    return folder
