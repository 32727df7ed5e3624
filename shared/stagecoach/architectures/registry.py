"""Which families of models exist, what one model's dimensions are, and which native tensors follow from them.

Everything is read from ``config.json`` in its old and new spellings; nothing is read from a model's name.
What a model has and Stagecoach cannot train (other activations, mixtures of experts, other RoPE scalings) is
refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from stagecoach.architectures.family import Family
from stagecoach.architectures.hf_config import dimensions_from_hf_config
from stagecoach.architectures.llama import LLAMA
from stagecoach.architectures.mistral import MISTRAL
from stagecoach.architectures.qwen2 import QWEN2
from stagecoach.architectures.qwen3 import QWEN3
from stagecoach.errors import DataError

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}

TensorKind = Literal["embedding", "norm", "head_norm", "qkv", "output", "gate_up", "down", "head"]
"""What a native tensor is, which decides how it is cut: ``head_norm`` is a norm over one head's dimensions
(q/k norms)."""

_MAX_LAYERS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The dimensions of one model. Refuses, when it is made, combinations that no model can have."""

    family: str
    """Name of the family in ``FAMILIES``."""
    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside the MLP."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; divides ``num_heads``."""
    head_dim: int
    """Width of one head; even. ``num_heads * head_dim`` need not be ``hidden_size``."""
    vocab_size: int
    """Rows of the embedding, without padding."""
    norm_eps: float
    """Epsilon of all RMS norms."""
    rope_theta: float
    """Base of the rotary frequencies."""
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    """None, ``{"rope_type": "linear", "factor"}``, or ``{"rope_type": "llama3", "factor", "low_freq_factor",
    "high_freq_factor", "original_max_position_embeddings"}``."""
    sliding_window: int | None = None
    """A token sees itself and the ``sliding_window - 1`` before it; None sees all."""
    tied_embeddings: bool = False
    """The head is the embedding; there is no ``head.weight``."""
    max_position_embeddings: int = 4096
    """Longest sequence that the model was made for."""
    qkv_bias: bool = False
    """Query, key and value projections have a bias."""
    qk_norm: bool = False
    """Queries and keys are RMS-normalised a head, before RoPE."""

    def __post_init__(self) -> None:
        """Refuse impossible dimensions."""
        if self.family not in FAMILIES:
            raise DataError(f"model family: expected one of {', '.join(FAMILIES)}, got {self.family!r}")
        for name in (
            "num_layers",
            "hidden_size",
            "intermediate_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"model dimension {name}: expected a whole number of at least 1, got {value!r}")
        if self.num_layers > _MAX_LAYERS:  # every tensor is listed by name, before any work
            raise DataError(f"model dimension num_layers: expected at most {_MAX_LAYERS}, got {self.num_layers}")
        if self.num_heads % self.num_kv_heads:
            raise DataError(
                "model dimensions: expected key/value heads that divide the query heads, got"
                f" {self.num_kv_heads} and {self.num_heads}"
            )
        if self.head_dim % 2:
            raise DataError(f"model dimension head_dim: expected an even number (rotary pairs), got {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise DataError(f"model dimension sliding_window: expected at least 1 or none, got {self.sliding_window}")

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Elements of all native tensors; tied weights counted once."""
        return sum(tensor.num_elements for tensor in native_tensors(self))

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the dimensions from the content of a Hub ``config.json``.

        Raises:
            DataError: The family or one of its options is not supported (named), or a dimension is missing.
        """
        return cls(**dimensions_from_hf_config(config, FAMILIES))

    def to_json(self) -> dict[str, Any]:
        """Return the dimensions as JSON values, by field name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.rope_scaling is not None:
            values["rope_scaling"] = dict(self.rope_scaling)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returned.

        Raises:
            DataError: A field is unknown, missing or impossible.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise DataError(
                f"model dimensions: expected only {', '.join(sorted(known))}, got also {', '.join(unknown)}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise DataError(f"model dimensions: {error}") from error


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One native tensor of a model."""

    name: str
    """Native name with the global layer number: ``layers.3.mlp.down.weight``."""
    shape: tuple[int, ...]
    """``(rows, columns)``, linear weights as [out, in]; or ``(rows,)`` for norms and biases."""
    kind: TensorKind
    """What it is, and so how it is cut."""
    layer: int | None = None
    """Global layer number; None for embedding, final norm and head."""

    @property
    def part(self) -> str:
        """The name without the layer: ``mlp.down.weight``."""
        return self.name if self.layer is None else self.name.split(".", 2)[2]

    @property
    def num_elements(self) -> int:
        """Rows times columns."""
        return self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1)


def native_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """Return every native tensor of the model, in the order in which it computes.

    Examples:
        >>> from stagecoach.architectures.registry import ModelSpec
        >>> spec = ModelSpec(family="llama", num_layers=1, hidden_size=8, intermediate_size=16, num_heads=2,
        num_kv_heads=1, ...                  head_dim=4, vocab_size=32, norm_eps=1e-5, rope_theta=1e4)
        >>> [(tensor.part, tensor.shape) for tensor in native_tensors(spec)][:3]
        [('embedding.weight', (32, 8)), ('attention_norm.weight', (8,)), ('attention.qkv.weight', (16, 8))]
    """
    tensors = [TensorSpec("embedding.weight", (spec.vocab_size, spec.hidden_size), "embedding")]
    for layer in range(spec.num_layers):
        tensors.extend(_layer_tensors(spec, layer))
    tensors.append(TensorSpec("final_norm.weight", (spec.hidden_size,), "norm"))
    if not spec.tied_embeddings:
        tensors.append(TensorSpec("head.weight", (spec.vocab_size, spec.hidden_size), "head"))
    return tensors


def _layer_tensors(spec: ModelSpec, layer: int) -> list[TensorSpec]:
    hidden, inner = spec.hidden_size, spec.intermediate_size

    def tensor(part: str, shape: tuple[int, ...], kind: TensorKind) -> TensorSpec:
        return TensorSpec(f"layers.{layer}.{part}", shape, kind, layer)

    tensors = [
        tensor("attention_norm.weight", (hidden,), "norm"),
        tensor("attention.qkv.weight", (spec.qkv_rows, hidden), "qkv"),
    ]
    if spec.qkv_bias:
        tensors.append(tensor("attention.qkv.bias", (spec.qkv_rows,), "qkv"))
    if spec.qk_norm:
        tensors.append(tensor("attention.q_norm.weight", (spec.head_dim,), "head_norm"))
        tensors.append(tensor("attention.k_norm.weight", (spec.head_dim,), "head_norm"))
    return [
        *tensors,
        tensor("attention.output.weight", (hidden, spec.num_heads * spec.head_dim), "output"),
        tensor("mlp_norm.weight", (hidden,), "norm"),
        tensor("mlp.gate_up.weight", (2 * inner, hidden), "gate_up"),
        tensor("mlp.down.weight", (hidden, inner), "down"),
    ]
