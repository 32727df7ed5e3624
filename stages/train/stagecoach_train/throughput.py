"""How much of the hardware a step used, by one written formula.

    MFU = (6 x N x tokens + 12 x layers x heads x head_dim x keys) / seconds / (ranks x peak)

N counts the weights of all matrix products, the head included and the embedding not; tokens are document tokens,
without padding; keys are the keys that all queries attend to (causal, within the document, within the sliding
window). The factors hold one forward and two backward passes of two operations each; what is computed twice to save
memory does not count.
"""

from __future__ import annotations

from stagecoach.architectures.registry import ModelSpec, native_tensors

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H200", 989.4e12),
    ("H100 PCIe", 756.5e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("A10G", 70e12),
)
"""Dense bf16 operations a second by a part of the device's name; the first that fits counts."""


def peak_flops(device_name: str) -> float | None:
    """Return a GPU's dense bf16 peak, None for an unknown one."""
    return next((flops for part, flops in PEAK_FLOPS if part in device_name), None)


def matrix_weights(spec: ModelSpec) -> int:
    """Return N of the formula: weights that take part in a matrix product for each token."""
    total = 0
    for tensor in native_tensors(spec):
        if len(tensor.shape) == 2 and (tensor.name != "embedding.weight" or spec.tied_embeddings):
            total += tensor.num_elements
    return total


def flops(spec: ModelSpec, num_tokens: int, num_keys: int) -> float:
    """Return the operations of one training step, by the formula above."""
    attention = 12.0 * spec.num_layers * spec.num_heads * spec.head_dim * num_keys
    return 6.0 * matrix_weights(spec) * num_tokens + attention
