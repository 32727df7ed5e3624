"""The decoder as pipeline stages: embedding, blocks, final norm and head, each stage with its share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from stagecoach_train.loss import RowLosses, VocabularyShard, greedy_tokens, head_cross_entropy, row_losses, wide_logits
from stagecoach_train.model.attention import Documents
from stagecoach_train.model.blocks import BlockWeights, rms_norm
from stagecoach_train.model.decode import Decoding
from stagecoach_train.model.rope import Rotary

# S tokens of the residual stream on this rank, T all tokens of the stream, R trained rows, E hidden size

#: Attribute of a layer -> native name behind ``layers.<i>.``
LAYER_PARTS: Mapping[str, str] = {
    "attention_norm": "attention_norm.weight",
    "qkv": "attention.qkv.weight",
    "output": "attention.output.weight",
    "mlp_norm": "mlp_norm.weight",
    "gate_up": "mlp.gate_up.weight",
    "down": "mlp.down.weight",
    "qkv_bias": "attention.qkv.bias",
    "q_norm": "attention.q_norm.weight",
    "k_norm": "attention.k_norm.weight",
}

RunBlock = Callable[[torch.Tensor, BlockWeights, Rotary, Documents], torch.Tensor]
Task = Literal["loss", "row_losses", "greedy", "logits"]


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """A micro-batch on the device, with everything that all layers share computed once.

    Attributes:
        tokens_T: int64 [T].
        rotary: Angles of every token's position.
        documents: Where the documents lie.
        rows_R: int64 [R], rows of the stream that have a target (or are asked for a greedy choice).
        targets_R: int64 [R], their targets; -100 on rows that only fill up a stored size.
        scale: 1 / targets of the whole step.
        decoding: Set while an answer is decoded: these are its next tokens.
    """

    tokens_T: torch.Tensor
    rotary: Rotary
    documents: Documents
    rows_R: torch.Tensor
    targets_R: torch.Tensor
    scale: float
    decoding: Decoding | None = None


class DecoderLayer(nn.Module):
    """The weights of one block; how they are applied (compiled, recomputed, exchanged) is given from outside."""

    def __init__(self, number: int, weights: Mapping[str, nn.Parameter], run: RunBlock) -> None:
        """Take the global layer number, the parameters by attribute name of `LAYER_PARTS`, and the way to run."""
        super().__init__()
        self.number = number
        for part in LAYER_PARTS:
            self.register_parameter(part, weights.get(part))
        self.run = run

    def weights(self) -> BlockWeights:
        """Return the weights as the block's function takes them."""
        return BlockWeights(**{part: getattr(self, part) for part in LAYER_PARTS})

    def forward(self, x_SE: torch.Tensor, batch: StreamBatch) -> torch.Tensor:
        """Apply the block."""
        if batch.decoding is not None:
            return batch.decoding.run(self.number, x_SE, self.weights(), batch.rotary)
        return self.run(x_SE, self.weights(), batch.rotary, batch.documents)


class Stage(nn.Module):
    """Consecutive layers, with the embedding in front if it is the first stage and norm and head behind if the last."""

    def __init__(
        self,
        *,
        parameters: Mapping[str, nn.Parameter],
        layer_numbers: Sequence[int],
        is_first: bool,
        is_last: bool,
        tied: bool,
        norm_eps: float,
        vocabulary: VocabularyShard,
        head_chunk_rows: int,
        run_of_layer: Callable[[int], RunBlock],
    ) -> None:
        """Take this stage's parameters by native name (global layer numbers) and the way to run each layer."""
        super().__init__()
        self.is_first, self.is_last = is_first, is_last
        self.norm_eps, self.vocabulary, self.head_chunk_rows = norm_eps, vocabulary, head_chunk_rows
        self.layer_numbers = tuple(layer_numbers)
        #: Called before the head's weights are read; data parallelism waits here for an update that is still arriving.
        self.before_head: Callable[[], None] = lambda: None
        self.embedding = parameters["embedding.weight"] if is_first else None
        self.layers = nn.ModuleList(
            DecoderLayer(
                number,
                {
                    part: parameters[f"layers.{number}.{native}"]
                    for part, native in LAYER_PARTS.items()
                    if f"layers.{number}.{native}" in parameters
                },
                run_of_layer(number),
            )
            for number in layer_numbers
        )
        self.final_norm = parameters["final_norm.weight"] if is_last else None
        # With tied weights the head is the embedding: the same parameter on one stage, a copy of it across stages.
        self.head = parameters["embedding.weight" if tied else "head.weight"] if is_last else None
        self.tied = tied

    def native_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield native name and parameter in the order in which the model computes, each parameter once."""
        if self.embedding is not None:
            yield "embedding.weight", self.embedding
        for number, layer in zip(self.layer_numbers, self.layers, strict=True):
            for part, native in LAYER_PARTS.items():
                if (parameter := getattr(layer, part)) is not None:
                    yield f"layers.{number}.{native}", parameter
        if self.final_norm is not None:
            yield "final_norm.weight", self.final_norm
        if self.head is not None and self.head is not self.embedding:
            yield "embedding.weight" if self.tied else "head.weight", self.head

    def forward(self, x_SE: torch.Tensor | None, batch: StreamBatch, task: Task = "loss") -> torch.Tensor | RowLosses:
        """Return hidden states for the next stage [S, E]; on the last stage what the task asks for."""
        if self.embedding is not None:
            x_SE = self._embed(batch)
        if x_SE is None:
            raise ValueError("a stage after the first needs the hidden states of the one before it")
        for layer in self.layers:
            x_SE = layer(x_SE, batch)
        return self._finish(x_SE, batch, task) if self.is_last else x_SE

    def _vocabulary_for(self, batch: StreamBatch) -> VocabularyShard:
        if batch.decoding is None:
            return self.vocabulary
        return dataclasses.replace(self.vocabulary, exchange=batch.decoding.exchange)

    def _embed(self, batch: StreamBatch) -> torch.Tensor:
        """Look up this rank's rows, zero elsewhere, and add up over the ranks that share the vocabulary."""
        assert self.embedding is not None
        exchange = self._vocabulary_for(batch).exchange
        if exchange.size == 1:
            return F.embedding(batch.tokens_T, self.embedding)
        row_T, here_T = self.vocabulary.local_ids(batch.tokens_T, self.embedding.shape[0])
        x_TE = F.embedding(row_T, self.embedding) * here_T[:, None].to(self.embedding.dtype)
        return exchange.leave(x_TE)

    def _finish(self, x_SE: torch.Tensor, batch: StreamBatch, task: Task) -> torch.Tensor | RowLosses:
        """Norm and head on the rows that matter."""
        assert self.final_norm is not None and self.head is not None
        self.before_head()
        vocabulary = self._vocabulary_for(batch)
        x_RE = vocabulary.exchange.all_tokens(x_SE).index_select(0, batch.rows_R)
        h_RE = rms_norm(x_RE, self.final_norm, self.norm_eps)
        if task == "loss":
            return head_cross_entropy(h_RE, self.head, batch.targets_R, batch.scale, vocabulary, self.head_chunk_rows)
        if task == "row_losses":
            return row_losses(h_RE, self.head, batch.targets_R, vocabulary, self.head_chunk_rows)
        if task == "logits":
            return wide_logits(h_RE, self.head, vocabulary)
        return greedy_tokens(h_RE, self.head, vocabulary)
