"""The model that is made on the spot: the same bytes everywhere, in the form of a Hub repository."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load

from stagecoach.demo.chat import demo_conversations
from stagecoach.errors import ConfigError, CorruptObjectError
from stagecoach.recipe.download import SeedIdentity
from stagecoach.recipe.seed import SeedModel
from stagecoach_download import seed_model

MODEL = SeedModel(seed=7, vocab_size=640, hidden_size=32, intermediate_size=64, sliding_window=32)


def weights(model: SeedModel) -> bytes:
    stream = io.BytesIO()
    seed_model.write_weights(model, stream)
    return stream.getvalue()


def test_config_json_is_a_mistral_of_these_dimensions() -> None:
    config = json.loads(seed_model.config_json(MODEL))
    assert config["architectures"] == ["MistralForCausalLM"]
    assert (config["vocab_size"], config["head_dim"], config["num_key_value_heads"]) == (640, 8, 2)
    assert config["sliding_window"] == 32


def test_the_weights_are_the_same_bytes_on_every_machine() -> None:
    assert hashlib.sha256(weights(MODEL)).hexdigest() == (
        "4ffc3a5c4c0858b9916c6243f3eb0ff0b876c5f34a20a6b136ba3d42fb4cdeda"
    )


def test_another_seed_gives_other_weights() -> None:
    assert weights(MODEL) != weights(MODEL.model_copy(update={"seed": 8}))


def test_tensors_have_hub_names_shapes_and_spreads() -> None:
    tensors = load(weights(MODEL))
    assert len(tensors) == 3 + 2 * 9
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (16, 32)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (32, 64)
    assert np.all(tensors["model.norm.weight"] == 1)
    assert tensors["lm_head.weight"].std() == pytest.approx(0.06, rel=0.02)
    assert tensors["model.layers.0.mlp.down_proj.weight"].std() == pytest.approx(0.06 / 2, rel=0.05)
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float32"}


def test_the_tokenizer_knows_chatml_tokens_and_reads_every_text_back() -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=seed_model.tokenizer_model(MODEL))
    assert processor.get_piece_size() == 640
    assert [processor.id_to_piece(i) for i in range(5)] == ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    for conversation in demo_conversations():
        for message in conversation["messages"]:
            assert processor.decode(processor.encode(message["content"])) == message["content"]


def test_text_that_spells_a_control_token_does_not_become_one() -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=seed_model.tokenizer_model(MODEL))
    assert not {3, 4} & set(processor.encode("<|im_start|>x<|im_end|>"))


def test_the_tokenizer_is_the_same_bytes_each_time() -> None:
    assert seed_model.tokenizer_model(MODEL) == seed_model.tokenizer_model(MODEL)


@pytest.mark.parametrize("vocab_size", [300, 20_000], ids=["too small", "too large"])
def test_an_impossible_vocabulary_is_a_config_error(vocab_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"model\.source\.vocab_size: SentencePiece cannot make {vocab_size} pieces"):
        seed_model.tokenizer_model(MODEL.model_copy(update={"vocab_size": vocab_size}))


def test_another_text_than_planned_is_refused() -> None:
    with pytest.raises(CorruptObjectError, match=r"the embedded chat set: expected sha256 000000000000\.\."):
        seed_model.check_text(SeedIdentity(model=MODEL, text_sha256="0" * 64))


def test_a_line_break_is_a_token_of_its_own() -> None:
    """Else the end of ``assistant<LF>`` and the first letters of an answer would be one token."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=seed_model.tokenizer_model(MODEL))
    assert not [i for i in range(640) if "\n" in processor.id_to_piece(i)]
    assert processor.encode("\n", out_type=str) == ["<0x0A>"]
