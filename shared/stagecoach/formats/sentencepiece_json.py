"""Builds the ``tokenizer.json`` that a SentencePiece model stands for, with the same ids as SentencePiece itself.

Text between special tokens is normalised as a fresh string: after ``<|im_start|>`` the word ``system`` is the piece
``▁system`` where the model puts a space before every text, as Llama's and Mistral's do.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from stagecoach.errors import DataError
from stagecoach.formats.sentencepiece_model import PieceKind, SentencePieceModel

_SPACE = "\u2581"


def tokenizer_from_sentencepiece(
    model: SentencePieceModel, added: Mapping[int, tuple[str, bool]] | None = None
) -> Tokenizer:
    """Return the tokenizer.

    Args:
        model: The SentencePiece model.
        added: Tokens that the model's config adds: id -> (text, special). Ids inside the vocabulary are skipped.

    Raises:
        DataError: The added tokens do not follow the vocabulary without a gap.
    """
    tokenizer = Tokenizer(_bpe(model))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model))
    tokenizer.decoder = decoders.Sequence(_decoders(model))
    kinds = (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind is not PieceKind.USER_DEFINED)
            for piece in model.pieces
            if piece.kind in kinds
        ]
    )
    for token_id, (text, special) in sorted((added or {}).items()):
        if token_id < len(model.pieces):
            continue
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
        if tokenizer.token_to_id(text) != token_id:
            raise DataError(
                f"tokenizer.model: added token {text!r} should have id {token_id}, it would get"
                f" {tokenizer.token_to_id(text)}:"
                " the added tokens leave a gap behind the vocabulary; use the source's tokenizer.json"
            )
    return tokenizer


def _bpe(model: SentencePieceModel) -> models.BPE:
    return models.BPE(
        vocab={piece.text: piece_id for piece_id, piece in enumerate(model.pieces)},
        merges=model.merges(),
        unk_token=model.text_of(model.unk_id),
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _normalizers(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    """Return SentencePiece's own steps in its order."""
    steps: list[normalizers.Normalizer] = []
    if model.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE if model.escape_whitespaces else " "))
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    return steps


def _decoders(model: SentencePieceModel) -> list[decoders.Decoder]:
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return steps
