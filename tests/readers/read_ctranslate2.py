"""Answers with CTranslate2: its own converter, its own kernels; the prompt is rendered with jinja2 and ``tokenizers``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


def main() -> None:
    """Answer the request of standard input on standard output."""
    request: dict[str, Any] = json.load(sys.stdin)
    folder = Path(request["folder"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    stop = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    stop_ids = stop if isinstance(stop, list) else [stop]
    found: dict[str, Any] = {"version": ctranslate2.__version__, "prompts": [], "generated": []}
    with tempfile.TemporaryDirectory() as name:
        converter = ctranslate2.converters.TransformersConverter(str(folder))
        generator = ctranslate2.Generator(converter.convert(f"{name}/model"), compute_type="float32", intra_threads=1)
        for chat in request["chats"]:
            text = template.render(messages=chat, add_generation_prompt=True, bos_token=special.get("bos_token"))
            encoding = tokenizer.encode(text, add_special_tokens=False)
            result = generator.generate_batch(
                [encoding.tokens],
                max_length=request["max_tokens"],
                sampling_topk=1,
                end_token=stop_ids,
                return_end_token=True,
                include_prompt_in_result=False,
            )
            found["prompts"].append(encoding.ids)
            found["generated"].append(result[0].sequences_ids[0])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
