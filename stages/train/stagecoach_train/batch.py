"""What one forward and backward pass works on: whole packs joined to one flat stream of tokens of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORED_TARGET = -100
"""Marks a position whose next token is not trained."""

CU_SEQLENS_SIZES = (64, 256, 1_024, 4_096)
"""Numbers of documents to which cu_seqlens may be padded; one is chosen for a whole run."""


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """The shapes that every micro-batch of a run has, so that nothing is compiled twice.

    Attributes:
        num_tokens: T, tokens of the flat stream: packs a micro-batch x tokens a pack.
        num_documents: N, documents for which cu_seqlens has room.
    """

    num_tokens: int
    num_documents: int

    @classmethod
    def of(cls, *, pack_tokens: int, micro_batch_packs: int, max_documents_per_pack: int) -> MicroBatchShape:
        """Choose the smallest stored size that holds the fullest pack, once for each pack of the micro-batch."""
        size = next((n for n in CU_SEQLENS_SIZES if n >= max_documents_per_pack), max_documents_per_pack)
        return cls(pack_tokens * micro_batch_packs, size * micro_batch_packs)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One flat stream of documents, each attending to itself alone.

    Attributes:
        tokens_T: int64 [T], token ids.
        positions_T: int64 [T], position within the document, restarting at 0.
        targets_T: int64 [T], the next token of the same document where it is trained, else IGNORED_TARGET. Already
            shifted: targets_T[i] is predicted from tokens_T[.. i].
        cu_seqlens: int32 [N + 1], where each document starts; padded with T, so that its length never changes.
        max_seqlen: Upper bound of the longest document (a bucket, not necessarily its length).
        num_targets: How many entries of targets_T are trained.
    """

    tokens_T: npt.NDArray[np.int64]
    positions_T: npt.NDArray[np.int64]
    targets_T: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int
    num_targets: int

    @property
    def num_tokens(self) -> int:
        """T, the length of the flat stream."""
        return int(self.tokens_T.shape[0])

    @classmethod
    def empty(cls, shape: MicroBatchShape) -> MicroBatch:
        """Return a micro-batch of documents of one token without targets: it adds exactly zero to every gradient."""
        num_tokens = shape.num_tokens
        # One-token documents cost attention nothing; what cu_seqlens cannot name goes into the last document.
        starts = np.minimum(np.arange(shape.num_documents + 1, dtype=np.int32), num_tokens)
        starts[-1] = num_tokens
        lengths = np.diff(starts)
        positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]) if num_tokens else np.zeros(0)
        return cls(
            tokens_T=np.zeros(num_tokens, np.int64),
            positions_T=positions.astype(np.int64),
            targets_T=np.full(num_tokens, IGNORED_TARGET, np.int64),
            cu_seqlens=starts,
            max_seqlen=max_seqlen_bucket(int(lengths.max(initial=1))),
            num_targets=0,
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation as the model sees it.

    Attributes:
        tokens: Its token ids.
        trained: For each token, whether it is a target (predicted from the one before it); the first never is.
    """

    tokens: Sequence[int] | npt.NDArray[np.integer]
    trained: Sequence[bool] | npt.NDArray[np.bool_]


def micro_batch_of_documents(documents: Sequence[Document], shape: MicroBatchShape) -> MicroBatch:
    """Lay documents one after another into a micro-batch; what is left becomes one untrained padding document.

    Raises:
        ValueError: The documents need more tokens, or more places in cu_seqlens, than the shape has.
    """
    lengths = [len(document.tokens) for document in documents]
    unused = shape.num_tokens - sum(lengths)
    num_documents = len(documents) + (unused > 0)
    if unused < 0 or num_documents > shape.num_documents:
        raise ValueError(
            f"{len(documents)} documents with {sum(lengths)} tokens do not fit a micro-batch of {shape.num_tokens} "
            f"tokens and {shape.num_documents} documents (padding counts as one); use fewer documents"
        )
    if unused:
        padding = Document(np.zeros(unused, np.int64), np.zeros(unused, np.bool_))
        documents, lengths = [*documents, padding], [*lengths, unused]
    tokens = np.concatenate([np.asarray(document.tokens, np.int64) for document in documents])
    trained = np.concatenate([np.asarray(document.trained, np.bool_) for document in documents])
    cu_seqlens = np.full(shape.num_documents + 1, shape.num_tokens, np.int32)
    cu_seqlens[: len(lengths)] = np.cumsum([0, *lengths[:-1]])
    targets = shifted_targets(tokens, trained, cu_seqlens)
    return MicroBatch(
        tokens_T=tokens,
        positions_T=np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]),
        targets_T=targets,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen_bucket(max(lengths)),
        num_targets=int((targets != IGNORED_TARGET).sum()),
    )


def shifted_targets(
    tokens_T: npt.NDArray[np.int64], trained_T: npt.NDArray[np.bool_], cu_seqlens: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Turn "this token is a target" into "the next token is the target here", never across documents.

    Examples:
        Tokens 5 6 7 | 8 9 (two documents), trained 7 and 9 (and 8, wrongly: a first token has nothing before it):

        >>> shifted_targets(np.array([5, 6, 7, 8, 9]), np.array([0, 0, 1, 1, 1], bool), np.array([0, 3, 5], "i4"))
        array([-100,    7, -100,    9, -100])
    """
    targets = np.full(tokens_T.shape[0], IGNORED_TARGET, np.int64)
    is_target = trained_T.copy()
    starts = cu_seqlens[cu_seqlens < tokens_T.shape[0]]
    is_target[starts] = False
    targets[:-1][is_target[1:]] = tokens_T[1:][is_target[1:]]
    return targets


def max_seqlen_bucket(longest_tokens: int) -> int:
    """Round a document length up to a power of two, at least 128: kernels are chosen by it, so few values may occur."""
    return max(128, 1 << (longest_tokens - 1).bit_length())
