"""Accounts for every tensor of a base model: used, or dropped for a stated reason; and every native tensor is
filled.

Nothing is skipped in silence: what is left over or missing is printed by name, and nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from stagecoach.architectures.hf_names import hub_tensors
from stagecoach.architectures.registry import FAMILIES, ModelSpec
from stagecoach.errors import DataError
from stagecoach.formats.hf_model import TensorSource
from stagecoach.formats.tensor_file import BFLOAT16, DTYPES

_READ_DTYPES = (DTYPES["F32"], DTYPES["F16"], BFLOAT16)
_SHOWN = 8


def account_for(source: TensorSource, spec: ModelSpec) -> list[str]:
    """Check that the source holds exactly the tensors that its config.json describes.

    Args:
        source: The base model's tensors.
        spec: Dimensions read from its config.json, before the vocabulary grows.

    Returns:
        The names of the tensors that are knowingly dropped, sorted.

    Raises:
        DataError: Tensors are missing, unknown, or of another shape or dtype; all are named.
    """
    shapes = source.shapes()
    wanted = {tensor.name: tensor.shape for tensor in hub_tensors(spec)}
    dropped = _dropped(source, spec, set(shapes) - set(wanted))
    problems = [
        listed("missing", set(wanted) - set(shapes)),
        listed("unknown", set(shapes) - set(wanted) - set(dropped)),
        listed(
            "of another shape",
            (
                f"{name} (expected {wanted[name]}, got {shapes[name]})"
                for name in wanted
                if shapes.get(name, wanted[name]) != wanted[name]
            ),
        ),
        listed(
            "of a dtype that is not fp32, fp16 or bf16",
            (
                f"{name} ({source.dtype(name)})"
                for name in wanted
                if name in shapes and source.dtype(name) not in _READ_DTYPES
            ),
        ),
    ]
    if found := [problem for problem in problems if problem]:
        raise DataError(f"{source.origin}: config.json and the tensors contradict each other: {'; '.join(found)}")
    return dropped


def _dropped(source: TensorSource, spec: ModelSpec, left_over: Iterable[str]) -> list[str]:
    patterns = [re.compile(pattern) for pattern in FAMILIES[spec.family].dropped]
    dropped = [name for name in left_over if any(pattern.fullmatch(name) for pattern in patterns)]
    embedding, head = (FAMILIES[spec.family].tensors[part][0] for part in ("embedding.weight", "head.weight"))
    if spec.tied_embeddings and head in left_over and embedding in source.shapes():
        if not _equal(source, embedding, head):
            raise DataError(
                f"{source.origin}: config.json says tie_word_embeddings true, but {head} differs"
                f" from {embedding};"
                " set tie_word_embeddings to false in the model's config.json"
            )
        dropped.append(head)
    return sorted(dropped)


def _equal(source: TensorSource, first: str, second: str) -> bool:
    one, other = source.tensor(first), source.tensor(second)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    step = 1024
    return all(np.array_equal(one[at : at + step], other[at : at + step]) for at in range(0, one.shape[0], step))


def listed(what: str, names: Iterable[str]) -> str:
    """Return ``2 missing: a, b``, the first few names sorted; nothing for no names."""
    found: Sequence[str] = sorted(names)
    if not found:
        return ""
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{more}"
