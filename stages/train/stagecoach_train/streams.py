"""Puts a micro-batch on the device, with rotary tables and trained rows worked out once for all layers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from stagecoach.architectures.registry import ModelSpec
from stagecoach_train.batch import IGNORED_TARGET, MicroBatch
from stagecoach_train.model.attention import Documents
from stagecoach_train.model.decode import Decoding
from stagecoach_train.model.rope import inverse_frequencies, rotary_table
from stagecoach_train.model.transformer import StreamBatch

ROWS_MULTIPLE_ON_GPU = 1_024
"""Trained rows are filled up to a multiple of this on a GPU, so that few sizes of logits ever exist."""


class StreamMaker:
    """Makes device batches of one run."""

    def __init__(self, spec: ModelSpec, device: torch.device, compute_dtype: torch.dtype) -> None:
        """Keep the frequencies on the device."""
        self.device = device
        self.rotary_dtype = torch.promote_types(compute_dtype, torch.float32)
        self.frequencies_F = inverse_frequencies(spec.head_dim, spec.rope_theta, spec.rope_scaling).to(device)

    def make(self, batch: MicroBatch, *, scale: float) -> StreamBatch:
        """Copy one micro-batch; its trained rows are those that have a target."""
        rows = np.flatnonzero(batch.targets_T != IGNORED_TARGET)
        targets = batch.targets_T[rows]
        if self.device.type == "cuda":
            rows, targets = _filled_up(rows, targets)
        return self._make(batch, rows, targets, scale)

    def make_next(self, token_ids: Sequence[int], decoding: Decoding) -> StreamBatch:
        """Make the next tokens of an answer, of which the last one's successor is asked for."""
        start = decoding.num_cached
        num_tokens = len(token_ids)
        positions = np.arange(start, start + num_tokens, dtype=np.int64)
        edges = np.array([0, num_tokens], np.int32)
        tokens = np.array(token_ids, np.int64)
        batch = MicroBatch(tokens, positions, np.full_like(tokens, IGNORED_TARGET), edges, num_tokens, 0)
        stream = self._make(batch, np.array([num_tokens - 1]), np.array([IGNORED_TARGET]), 1.0)
        return dataclasses.replace(stream, decoding=decoding)

    def _make(self, batch: MicroBatch, rows: np.ndarray, targets: np.ndarray, scale: float) -> StreamBatch:
        edges = batch.cu_seqlens.tolist()
        spans = tuple((a, b) for a, b in itertools.pairwise(edges) if b > a)
        return StreamBatch(
            tokens_T=self._to_device(batch.tokens_T),
            rotary=rotary_table(self._to_device(batch.positions_T), self.frequencies_F, self.rotary_dtype),
            documents=Documents(
                cu_seqlens=self._to_device(batch.cu_seqlens),
                max_seqlen=torch.tensor(batch.max_seqlen, dtype=torch.int32),
                spans=spans,
            ),
            rows_R=self._to_device(rows.astype(np.int64)),
            targets_R=self._to_device(targets.astype(np.int64)),
            scale=scale,
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        # A copy: the array may be a read-only view of a memory-mapped pack.
        tensor = torch.from_numpy(np.array(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


def _filled_up(rows: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Append row 0 without a target until the number of rows is one of the stored sizes."""
    missing = -len(rows) % ROWS_MULTIPLE_ON_GPU
    return np.pad(rows, (0, missing)), np.pad(targets, (0, missing), constant_values=IGNORED_TARGET)
