"""Small real tokenizers of the five families that chat models come in, made once a test session."""

from __future__ import annotations

import json
import tempfile
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stagecoach.formats.tokenizer import ChatFormat, ChatTokenizer, build_final_tokenizer

Family = Literal["mistral", "llama3", "smollm2", "qwen2", "llama2-template", "llama3-template", "smollm2-template"]
FAMILIES: tuple[Family, ...] = (
    "mistral",
    "llama3",
    "smollm2",
    "qwen2",
    "llama2-template",
    "llama3-template",
    "smollm2-template",
)
CHATML_FAMILIES: tuple[Family, ...] = ("mistral", "llama3", "smollm2", "qwen2")

_LLAMA3_SPLIT = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# Qwen2 differs from Llama 3 in digits, which stand alone, and in its normaliser, NFC.
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def mistral_model_path() -> Path:
    """Return the real 32,000-piece SentencePiece model of Mistral v1, which a test dependency carries."""
    spec = find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / "tokenizer.model.v1"


def demo_lines() -> list[str]:
    """Return the project's own chat set, one JSON row a line."""
    spec = find_spec("stagecoach.demo")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "chat.jsonl").read_text(encoding="utf-8").splitlines()


@lru_cache(maxsize=1)
def _training_texts() -> list[str]:
    messages = [message for line in demo_lines() for message in json.loads(line)["messages"]]
    return [message["content"] or "" for message in messages] + ["one\n\ntwo\n\n\nthree\n"] * 500


def _byte_level(split: str | None, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if split is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return tokenizer


def write_source(folder: Path, family: Family) -> None:
    """Write the files that a Hub repository of that family has."""
    config: dict[str, Any]
    if family == "mistral":
        (folder / "tokenizer.model").write_bytes(mistral_model_path().read_bytes())
        return
    if family == "llama2-template":
        (folder / "tokenizer.model").write_bytes(mistral_model_path().read_bytes())
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": LLAMA2_TEMPLATE}
    elif family.startswith("llama3"):
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
        special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer = _byte_level(_LLAMA3_SPLIT, [])
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in special])
        bos = special[0]
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos} $B:1",
                    special_tokens=[(bos, tokenizer.token_to_id(bos))],
                ),
            ]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"bos_token": bos, "eos_token": "<|eot_id|>", "chat_template": LLAMA3_TEMPLATE}
    elif family == "qwen2":
        tokenizer = _byte_level(_QWEN2_SPLIT, [])
        tokenizer.normalizer = normalizers.NFC()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in special])
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "chat_template": SMOLLM2_TEMPLATE,
        }
    else:
        tokenizer = _byte_level(None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
            "chat_template": SMOLLM2_TEMPLATE,
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@cache
def final_files(family: Family) -> dict[str, bytes]:
    """Return the final tokenizer's files of a family."""
    with tempfile.TemporaryDirectory() as name:
        write_source(Path(name), family)
        chat_format: ChatFormat = "tokenizer" if family.endswith("template") else "chatml"
        return build_final_tokenizer(Path(name), chat_format)


@cache
def chat_tokenizer(family: Family) -> ChatTokenizer:
    """Return the loaded final tokenizer of a family."""
    return ChatTokenizer(final_files(family), family)
