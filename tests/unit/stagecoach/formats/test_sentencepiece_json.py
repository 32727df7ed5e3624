"""Ids of the built ``tokenizer.json`` equal those of SentencePiece itself, for every kind of model we may meet."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import sentencepiece

from stagecoach.errors import DataError
from stagecoach.formats.sentencepiece_json import tokenizer_from_sentencepiece
from stagecoach.formats.sentencepiece_model import read_sentencepiece_model
from tests.unit.stagecoach_pack.chat_tokenizers import mistral_model_path
from tests.unit.stagecoach_pack.generated_chats import TEXTS


def trained(**options: Any) -> bytes:
    """Return a small SentencePiece model trained on the generated texts."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if text.strip()] * 20),
        model_writer=stream,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return stream.getvalue()


def random_text(draw: random.Random) -> str:
    if draw.random() < 0.5:
        return "".join(draw.choice(TEXTS) for _ in range(3))
    return "".join(chr(draw.choice((32, 9, 10, *range(33, 127), 233, 0x4E2D, 0x1F600, 0x301))) for _ in range(40))


MODELS = {
    "mistral v1": lambda: mistral_model_path().read_bytes(),
    "no space in front": lambda: trained(
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
    ),
    "spaces squeezed": lambda: trained(
        model_type="bpe", vocab_size=700, byte_fallback=True, normalization_rule_name="identity"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_ids_equal_those_of_sentencepiece(name: str) -> None:
    data = MODELS[name]()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = tokenizer_from_sentencepiece(read_sentencepiece_model(data, name))
    draw = random.Random(7)
    for text in [*TEXTS, *(random_text(draw) for _ in range(500))]:
        if text and "\u2581" not in text:
            assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text), ascii(text)


def test_decoding_gives_the_text_back() -> None:
    tokenizer = tokenizer_from_sentencepiece(read_sentencepiece_model(mistral_model_path().read_bytes(), "v1"))
    for text in TEXTS:
        if "\u2581" not in text:
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_control_symbols_are_special_and_user_defined_ones_are_not() -> None:
    data = trained(model_type="bpe", vocab_size=700, control_symbols=["<|im_start|>"], user_defined_symbols=["<box>"])
    added = tokenizer_from_sentencepiece(read_sentencepiece_model(data, "x")).get_added_tokens_decoder()
    assert {token.content: token.special for token in added.values()} == {
        "<unk>": True,
        "<s>": True,
        "</s>": True,
        "<|im_start|>": True,
        "<box>": False,
    }


def test_tokens_that_the_config_adds_follow_the_vocabulary() -> None:
    model = read_sentencepiece_model(mistral_model_path().read_bytes(), "v1")
    tokenizer = tokenizer_from_sentencepiece(model, {0: ("<unk>", True), 32_000: ("<pad>", True)})
    assert tokenizer.token_to_id("<pad>") == 32_000


def test_a_gap_behind_the_vocabulary_is_refused() -> None:
    model = read_sentencepiece_model(mistral_model_path().read_bytes(), "v1")
    with pytest.raises(DataError, match=r"'<pad>' should have id 32001, it would get 32000"):
        tokenizer_from_sentencepiece(model, {32_001: ("<pad>", True)})
