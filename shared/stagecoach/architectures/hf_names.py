"""Which rows of which Hub tensor make up a native tensor, and the other way round.

A native tensor is rows of Hub tensors, one run after another; nothing is transposed, permuted or changed in
number. So one list, read in both directions, serves convert and export. Fused query/key/value rows go by
key/value group:

    native qkv   [ q rows of group 0 | k row block 0 | v row block 0 | q rows of group 1 | k row block 1 | ..
    ] gate_up      [ gate_proj | up_proj ]
"""

from __future__ import annotations

from dataclasses import dataclass

from stagecoach.architectures.registry import FAMILIES, ModelSpec, TensorSpec, native_tensors


@dataclass(frozen=True, slots=True)
class SourceRows:
    """A run of rows of one Hub tensor."""

    tensor: str
    """Hub name: ``model.layers.0.self_attn.q_proj.weight``."""
    start: int
    """First row."""
    end: int
    """Row after the last."""


@dataclass(frozen=True, slots=True)
class HubTensor:
    """One tensor of a Hub checkpoint and the native rows that it is made of."""

    name: str
    """Hub name."""
    shape: tuple[int, ...]
    """Shape in the Hub checkpoint."""
    native: str
    """The native tensor that holds its rows."""
    native_rows: tuple[tuple[int, int], ...]
    """Runs of native rows that make it up, in its own order."""


def source_rows(spec: ModelSpec, tensor: TensorSpec) -> list[SourceRows]:
    """Return the Hub rows of one native tensor, in native order."""
    names = [name.format(layer=tensor.layer) for name in FAMILIES[spec.family].tensors[tensor.part]]
    rows = tensor.shape[0]
    match tensor.kind:
        case "qkv":
            return _by_group(spec, *names)
        case "gate_up":
            gate, up = names
            return [SourceRows(gate, 0, rows // 2), SourceRows(up, 0, rows // 2)]
        case _:
            (name,) = names
            return [SourceRows(name, 0, rows)]


def hub_tensors(spec: ModelSpec) -> list[HubTensor]:
    """Return every tensor of the model's Hub checkpoint, in the order in which the model computes."""
    tensors: list[HubTensor] = []
    for native in native_tensors(spec):
        runs: dict[str, list[tuple[int, int, int]]] = {}
        at = 0
        for source in source_rows(spec, native):
            size = source.end - source.start
            runs.setdefault(source.tensor, []).append((source.start, at, at + size))
            at += size
        for name, parts in runs.items():
            native_rows = tuple((start, end) for _, start, end in sorted(parts))
            num_rows = sum(end - start for start, end in native_rows)
            tensors.append(HubTensor(name, (num_rows, *native.shape[1:]), native.name, native_rows))
    return tensors


def _by_group(spec: ModelSpec, query: str, key: str, value: str) -> list[SourceRows]:
    query_rows, head_rows = spec.queries_per_group * spec.head_dim, spec.head_dim
    found: list[SourceRows] = []
    for group in range(spec.num_kv_heads):
        found.append(SourceRows(query, group * query_rows, (group + 1) * query_rows))
        found.append(SourceRows(key, group * head_rows, (group + 1) * head_rows))
        found.append(SourceRows(value, group * head_rows, (group + 1) * head_rows))
    return found
