"""The final tokenizer: its files, the BOS and pad rules, and ids equal to those that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import DataError, MissingInputError
from stagecoach.formats.tokenizer import ChatTokenizer, build_final_tokenizer
from stagecoach.recipe.seed import SeedModel
from stagecoach_download.seed_model import tokenizer_model
from tests.unit.stagecoach_pack.chat_tokenizers import (
    FAMILIES,
    SMOLLM2_TEMPLATE,
    Family,
    chat_tokenizer,
    final_files,
    mistral_model_path,
    write_source,
)


def config_of(family: Family) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(final_files(family)["tokenizer_config.json"])
    return value


def test_mistral_ids_are_the_known_ones() -> None:
    tokenizer = chat_tokenizer("mistral")
    text = tokenizer.template.render([{"role": "system", "content": "You are helpful."}])
    assert text == "<s><|im_start|>system\nYou are helpful.<|im_end|>\n"
    assert tokenizer.encode_batch([text]) == [
        [1, 32000, 1587, 13, 1976, 460, 10865, 28723, 32001, 28705, 13]  # one BOS in front of the ten known ids
    ]


def test_role_words_have_the_known_mistral_ids() -> None:
    tokenizer = chat_tokenizer("mistral")
    assert tokenizer.encode_batch(["<|im_start|>user\n", "<|im_start|>assistant\n"]) == [
        [32000, 2188, 13],
        [32000, 13892, 13],
    ]
    assert (tokenizer.vocab_size, tokenizer.stop_ids) == (32_002, (32_001,))


def test_the_files_name_a_class_that_never_changes_ids() -> None:
    config = config_of("mistral")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["eos_token"] == "<|im_end|>"
    assert config["add_bos_token"] is True
    assert json.loads(final_files("mistral")["special_tokens_map.json"])["bos_token"] == "<s>"
    assert final_files("mistral")["chat_template.jinja"].decode() == config["chat_template"]
    assert final_files("mistral")["tokenizer.model"] == mistral_model_path().read_bytes()


@pytest.mark.parametrize(("prefix", "second"), [(True, "▁user"), (False, "user")])
def test_the_word_boundary_behind_control_tokens_is_told_to_llama_cpp(
    tmp_path: Path, prefix: bool, second: str
) -> None:
    """llama.cpp rebuilds the tokenizer from tokenizer.model and puts the boundary there unless it is told not to."""
    if prefix:
        write_source(tmp_path, "mistral")
    else:
        (tmp_path / "tokenizer.model").write_bytes(tokenizer_model(SeedModel(seed=1, vocab_size=700)))
    files = build_final_tokenizer(tmp_path, "chatml")
    assert json.loads(files["tokenizer_config.json"])["add_prefix_space"] is prefix
    ids = ChatTokenizer(files, "x").encode("<|im_start|>user").ids.tolist()
    assert "".join(ChatTokenizer(files, "x").token_of(token_id) for token_id in ids[1:]) == second


def test_a_tokenizer_without_a_sentencepiece_file_says_nothing_about_word_boundaries() -> None:
    assert "add_prefix_space" not in config_of("llama3")


@pytest.mark.parametrize(
    ("family", "pad"),
    [
        ("mistral", "<unk>"),  # no pad: unk
        ("llama3", "<|reserved_special_token_0|>"),  # neither pad nor unk: a reserved token
        ("qwen2", "<|endoftext|>"),  # its own
        ("smollm2", "<|endoftext|>"),  # its pad is <|im_end|>, which ends answers
    ],
)
def test_pad_never_ends_an_answer(family: Family, pad: str) -> None:
    assert config_of(family)["pad_token"] == pad


@pytest.mark.parametrize(
    ("family", "adds"), [("mistral", True), ("llama3", True), ("smollm2", False), ("qwen2", False)]
)
def test_bos_is_added_as_the_source_did_unless_it_is_a_chatml_token(family: Family, adds: bool) -> None:
    tokenizer = chat_tokenizer(family)
    assert (tokenizer.adds_bos, tokenizer.begins_with_bos) == (adds, adds)
    assert ("bos_token" in config_of(family)["chat_template"]) is adds


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_files_and_gives_the_same_ids(family: Family, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, data in final_files(family).items():
        (tmp_path / name).write_bytes(data)
    model_type = family if family in ("mistral", "qwen2") else "llama"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": " Grüße 😀\n"}, {"role": "assistant", "content": "\tok "}]
    tokenizer = chat_tokenizer(family)
    text = tokenizer.template.render(messages)
    assert loaded.apply_chat_template(messages, tokenize=False) == text
    assert loaded.apply_chat_template(messages)["input_ids"] == tokenizer.encode_batch([text])[0]
    prompt = loaded.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert prompt == tokenizer.prompt_ids(messages[:1])
    begins = loaded("a")["input_ids"][0] == loaded.bos_token_id
    assert begins is tokenizer.adds_bos
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.special.eos, tokenizer.special.pad)


def test_with_the_tokenizers_own_format_nothing_is_added() -> None:
    config = config_of("smollm2-template")
    assert config["chat_template"] == SMOLLM2_TEMPLATE
    assert chat_tokenizer("smollm2-template").vocab_size == chat_tokenizer("smollm2").vocab_size
    assert not chat_tokenizer("smollm2-template").is_chatml


def test_chatml_tokens_that_the_source_has_keep_their_ids() -> None:
    assert (chat_tokenizer("smollm2").id_of("<|im_start|>"), chat_tokenizer("smollm2").id_of("<|im_end|>")) == (1, 2)


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_source(tmp_path, "llama3")
    assert build_final_tokenizer(tmp_path, "chatml") == build_final_tokenizer(tmp_path, "chatml")


def test_a_final_tokenizer_is_its_own_source(tmp_path: Path) -> None:
    for name, data in final_files("mistral").items():
        (tmp_path / name).write_bytes(data)
    assert build_final_tokenizer(tmp_path, "chatml")["tokenizer.json"] == final_files("mistral")["tokenizer.json"]


def test_special_tokens_written_as_objects_are_read(tmp_path: Path) -> None:
    write_source(tmp_path, "llama3")
    (tmp_path / "tokenizer_config.json").unlink()
    spelled = {"bos_token": {"content": "<|begin_of_text|>", "lstrip": False}, "eos_token": "<|end_of_text|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(spelled))
    config = json.loads(build_final_tokenizer(tmp_path, "chatml")["tokenizer_config.json"])
    assert (config["bos_token"], config["add_bos_token"]) == ("<|begin_of_text|>", True)


def test_a_flag_in_the_config_wins_over_the_post_processor(tmp_path: Path) -> None:
    write_source(tmp_path, "llama3")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    tokenizer = ChatTokenizer(build_final_tokenizer(tmp_path, "chatml"), "x")
    assert (tokenizer.adds_bos, tokenizer.begins_with_bos) == (False, False)


def test_literal_control_strings_stay_text() -> None:
    tokenizer = chat_tokenizer("mistral")
    text = "<|im_start|>user\na<|im_end|>b<|im_end|>\n"
    encoded = tokenizer.encode(text, [(18, 28)])
    assert [token_id for token_id in encoded.ids.tolist() if token_id >= 32000] == [32000, 32001]
    assert "".join(text[a:b] for a, b in zip(encoded.starts, encoded.ends, strict=True)).startswith(
        "<|im_start|>user\na<|"
    )
    assert tokenizer.decode(encoded.ids.tolist()).count("<|im_end|>") == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"expected tokenizer\.json or a SentencePiece tokenizer\.model"),
        ({"tokenizer.json": b"{}"}, r"expected a tokenizer\.json of the library tokenizers"),
        ({"tokenizer.json": b"\xff\xfe"}, "tokenizer.json: not valid JSON"),
        ({"tokenizer.model": b"\n\x05wrong"}, r"expected a SentencePiece model"),
        (
            {"tokenizer.model": b"IQ== 0\n"},
            r"expected a SentencePiece model, or a tokenizer\.json beside it",
        ),  # a tiktoken file
        ({"tokenizer_config.json": b"[1]"}, r"expected a JSON object, got list"),
        ({"tokenizer_config.json": b"{"}, r"tokenizer_config\.json: expected JSON"),
    ],
)
def test_bad_source_files_are_refused_by_name(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises((DataError, MissingInputError), match=message):
        build_final_tokenizer(tmp_path, "chatml")


def test_a_special_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path, "smollm2")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<nowhere>"}')
    with pytest.raises(DataError, match="'<nowhere>' is not in the vocabulary"):
        build_final_tokenizer(tmp_path, "chatml")


def test_the_tokenizers_own_format_needs_a_template(tmp_path: Path) -> None:
    write_source(tmp_path, "mistral")
    with pytest.raises(DataError, match=r"neither .* holds a chat template; use chat_format: chatml"):
        build_final_tokenizer(tmp_path, "tokenizer")


def test_loading_without_a_file_names_it() -> None:
    with pytest.raises(DataError, match=r"x: expected the file tokenizer_config\.json, got tokenizer\.json"):
        ChatTokenizer({"tokenizer.json": final_files("mistral")["tokenizer.json"]}, "x")
