"""Micro-batches by hand: two documents and what is around them."""

from __future__ import annotations

import numpy as np
import pytest

from stagecoach_train.batch import Document, MicroBatch, MicroBatchShape, max_seqlen_bucket, micro_batch_of_documents

TWO = [Document([5, 6, 7], [True, False, True]), Document([8, 9], [False, True])]


def test_two_documents_and_padding() -> None:
    batch = micro_batch_of_documents(TWO, MicroBatchShape(num_tokens=8, num_documents=4))
    assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 8, 8]
    # 5 is a document's first token and so never a target, whatever its bit says
    assert batch.targets_T.tolist() == [-100, 7, -100, 9, -100, -100, -100, -100]
    assert batch.num_targets == 2


def test_a_full_stream_has_no_padding_document() -> None:
    batch = micro_batch_of_documents(TWO, MicroBatchShape(num_tokens=5, num_documents=2))
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.num_targets == 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 documents with 5 tokens do not fit a micro-batch of 4 tokens"):
        micro_batch_of_documents(TWO, MicroBatchShape(4, 4))
    with pytest.raises(ValueError, match="do not fit a micro-batch of 6 tokens and 2 documents"):
        micro_batch_of_documents(TWO, MicroBatchShape(6, 2))


def test_the_empty_micro_batch_trains_nothing() -> None:
    batch = MicroBatch.empty(MicroBatchShape(num_tokens=300, num_documents=2))
    assert batch.cu_seqlens.tolist() == [0, 150, 300]
    assert batch.positions_T.tolist() == [*range(150), *range(150)]
    assert batch.num_targets == 0
    assert (batch.targets_T == -100).all()


@pytest.mark.parametrize(("num_documents", "longest"), [(64, 256), (256, 128), (4_096, 128)])
@pytest.mark.parametrize("documents", [[], [Document([1] * 100, [True] * 100)]], ids=["empty", "one document"])
def test_padding_costs_attention_little(documents: list[Document], num_documents: int, longest: int) -> None:
    """Breaks if the ranks of a step wait for one that has nothing to do: padding as one document costs 19 times a pack."""
    shape = MicroBatchShape(16_384, num_documents)
    batch = micro_batch_of_documents(documents, shape) if documents else MicroBatch.empty(shape)
    lengths = np.diff(batch.cu_seqlens)
    assert lengths.sum() == 16_384
    assert lengths.max() <= longest + 8
    assert batch.max_seqlen <= 2 * longest


@pytest.mark.parametrize(
    ("max_documents", "packs", "shape"),
    [(64, 1, (512, 64)), (65, 1, (512, 256)), (1_024, 2, (1_024, 2_048)), (5_000, 1, (512, 5_000))],
)
def test_the_smallest_stored_size_that_holds_the_fullest_pack(
    max_documents: int, packs: int, shape: tuple[int, int]
) -> None:
    found = MicroBatchShape.of(pack_tokens=512, micro_batch_packs=packs, max_documents_per_pack=max_documents)
    assert found == MicroBatchShape(*shape)


@pytest.mark.parametrize(("longest", "bucket"), [(1, 128), (128, 128), (129, 256), (2_849, 4_096), (16_384, 16_384)])
def test_lengths_fall_into_few_buckets(longest: int, bucket: int) -> None:
    assert max_seqlen_bucket(longest) == bucket


def test_many_documents_of_one_token() -> None:
    documents = [Document([i], [True]) for i in range(200)]
    batch = micro_batch_of_documents(documents, MicroBatchShape(200, 256))
    assert batch.num_targets == 0
    assert np.unique(batch.positions_T).tolist() == [0]
