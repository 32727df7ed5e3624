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

PADDING_DOCUMENT_TOKENS = 128
"""Tokens of a padding document, where cu_seqlens has room for as many: attention kernels work on tiles of 128 rows."""


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
        """Return a micro-batch of padding alone, without targets: it adds exactly zero to every gradient."""
        nothing = np.zeros(0, np.int64)
        return cls.of_documents(nothing, nothing != 0, nothing, shape)

    @classmethod
    def of_documents(
        cls,
        tokens: npt.NDArray[np.integer],
        trained: npt.NDArray[np.bool_],
        document_starts: npt.NDArray[np.int64],
        shape: MicroBatchShape,
    ) -> MicroBatch:
        """Return a micro-batch of documents that lie one behind another; untrained padding documents fill it up.

        Args:
            tokens: Ids of all documents, no more than the shape has.
            trained: For each, whether it is a target; a document's first never is.
            document_starts: int64 [D], where each document starts; one place of the shape is left where there is padding.
            shape: The shape.
        """
        cu_seqlens = cu_seqlens_of(document_starts, len(tokens), shape)
        padding = np.zeros(shape.num_tokens - len(tokens), np.int64)
        tokens_T = np.concatenate([tokens, padding]).astype(np.int64)
        targets_T = shifted_targets(tokens_T, np.concatenate([trained, padding != 0]), cu_seqlens)
        return cls(
            tokens_T=tokens_T,
            positions_T=positions_of(cu_seqlens),
            targets_T=targets_T,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen_bucket(int(np.diff(cu_seqlens).max(initial=1))),
            num_targets=int(np.count_nonzero(targets_T != IGNORED_TARGET)),
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
    """Lay documents one after another into a micro-batch; what is left becomes untrained padding documents.

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
    nothing = np.zeros(0, np.int64)
    tokens = np.concatenate([nothing, *(np.asarray(document.tokens, np.int64) for document in documents)])
    trained = np.concatenate([nothing != 0, *(np.asarray(document.trained, np.bool_) for document in documents)])
    return MicroBatch.of_documents(tokens, trained, np.cumsum([0, *lengths])[:-1], shape)


def cu_seqlens_of(
    document_starts: npt.NDArray[np.int64], num_document_tokens: int, shape: MicroBatchShape
) -> npt.NDArray[np.int32]:
    """Return int32 [N + 1]: where documents start, then where padding does; padded with T.

    Attention costs the square of a document's length, so one document of padding can cost more than all the others of a
    micro-batch: what they leave is cut into as many pieces of `PADDING_DOCUMENT_TOKENS` as there are places.

    Examples:
        Documents of 100 and 200 tokens in a stream of 700 with room for four, and for eight:

        >>> cu_seqlens_of(np.array([0, 100]), 300, MicroBatchShape(700, 4)).tolist()
        [0, 100, 300, 500, 700]
        >>> cu_seqlens_of(np.array([0, 100]), 300, MicroBatchShape(700, 8)).tolist()
        [0, 100, 300, 400, 500, 600, 700, 700, 700]
    """
    num_documents, unused = len(document_starts), shape.num_tokens - num_document_tokens
    pieces = min(shape.num_documents - num_documents, -(-unused // PADDING_DOCUMENT_TOKENS))
    cu_seqlens = np.full(shape.num_documents + 1, shape.num_tokens, np.int32)
    cu_seqlens[:num_documents] = document_starts
    starts = num_document_tokens + np.arange(pieces) * unused // max(1, pieces)
    cu_seqlens[num_documents : num_documents + pieces] = starts
    return cu_seqlens


def positions_of(cu_seqlens: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return each token's position in its document, int64 [T], for documents that start at ``cu_seqlens``."""
    lengths = np.diff(cu_seqlens).astype(np.int64)
    return np.arange(int(cu_seqlens[-1]), dtype=np.int64) - np.repeat(cu_seqlens[:-1].astype(np.int64), lengths)


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
