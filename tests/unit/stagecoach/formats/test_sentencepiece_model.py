"""The reader of ``tokenizer.model``, against transformers' own reading of the real Mistral v1 model."""

from __future__ import annotations

import pytest

from stagecoach.errors import DataError
from stagecoach.formats.sentencepiece_model import PieceKind, SentencePieceModel, read_sentencepiece_model
from tests.unit.stagecoach_pack.chat_tokenizers import mistral_model_path

#: pieces "<unk>" (unknown), "a" score -1.0, "b" -2.0, "ab" -0.5; trainer_spec: model_type 2 (BPE), byte_fallback 1
TINY = bytes.fromhex(
    "0a090a053c756e6b3e1802"
    "0a080a016115000080bf"
    "0a080a016215000000c0"
    "0a090a02616215000000bf"
    "12051802980201"
    "1a021800"
)  # fmt: skip


@pytest.fixture(scope="module")
def mistral() -> SentencePieceModel:
    return read_sentencepiece_model(mistral_model_path().read_bytes(), "tokenizer.model.v1")


def test_the_tiny_model_is_read_field_by_field() -> None:
    model = read_sentencepiece_model(TINY, "tiny")
    assert [(piece.text, piece.score, piece.kind) for piece in model.pieces] == [
        ("<unk>", 0.0, PieceKind.UNKNOWN),
        ("a", -1.0, PieceKind.NORMAL),
        ("b", -2.0, PieceKind.NORMAL),
        ("ab", -0.5, PieceKind.NORMAL),
    ]
    assert (model.model_type, model.byte_fallback, model.add_dummy_prefix, model.pad_id) == (2, True, False, -1)
    assert model.merges() == [("a", "b")]


def test_the_real_model_has_the_known_settings(mistral: SentencePieceModel) -> None:
    assert len(mistral.pieces) == 32_000
    assert (mistral.unk_id, mistral.bos_id, mistral.eos_id, mistral.pad_id) == (0, 1, 2, -1)
    assert (mistral.byte_fallback, mistral.add_dummy_prefix, mistral.remove_extra_whitespaces) == (True, True, False)
    assert mistral.pieces[13].text == "<0x0A>"
    assert mistral.pieces[13].kind is PieceKind.BYTE


def test_merges_equal_those_of_transformers(mistral: SentencePieceModel) -> None:
    from transformers.tokenization_utils_base import generate_merges

    scores = {piece.text: piece.score for piece in mistral.pieces}
    expected = generate_merges({text: index for index, text in enumerate(scores)}, scores)
    assert mistral.merges() == expected
    assert len(expected) == 58_980


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"model": 1}', id="JSON"),
        pytest.param(TINY[:20], id="cut inside a piece"),
        pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", id="endless number"),
        pytest.param(b"\x00\x01", id="field 0"),
        pytest.param(TINY.replace(bytes.fromhex("1802980201"), bytes.fromhex("1803980201")), id="word model"),
    ],
)
def test_what_is_no_model_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"somewhere/tokenizer\.model: expected a SentencePiece model"):
        read_sentencepiece_model(data, "somewhere/tokenizer.model")
