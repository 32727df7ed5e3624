"""How a model is cut: literal shapes of the original recipe, and split and merge as inverses for every family
and layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.errors import ConfigError
from stagecoach.formats.tensor_file import Array
from stagecoach.parallel.rectangles import check_cover
from stagecoach.parallel.slicing import (
    RankLayout,
    check_layout,
    layers_of_stage,
    legal_tensor_parallel,
    local_rectangles,
    padded_vocab_size,
)
from tests.tiny_models import CONFIGS, cut, spec_of

MISTRAL_7B = spec_of(
    "mistral",
    num_hidden_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32002,
)


class TestLiteralShapes:
    """Values of the system that is replaced."""

    @pytest.mark.parametrize(("tensor_parallel", "rows"), [(1, 32128), (2, 32256), (4, 32256), (8, 32768)])
    def test_padded_vocabulary(self, tensor_parallel: int, rows: int) -> None:
        assert padded_vocab_size(32_002, tensor_parallel) == rows

    def test_mistral_7b_at_tp4(self) -> None:
        shapes = {t.name: t.local_shape for t in local_rectangles(MISTRAL_7B, RankLayout(4), 1, 0)}
        assert shapes["embedding.weight"] == shapes["head.weight"] == (8064, 4096)
        assert shapes["layers.0.attention.qkv.weight"] == (1536, 4096)
        assert shapes["layers.0.attention.output.weight"] == (4096, 1024)
        assert shapes["layers.0.mlp.gate_up.weight"] == (7168, 4096)
        assert shapes["layers.0.mlp.down.weight"] == (4096, 3584)
        assert shapes["layers.0.mlp_norm.weight"] == (4096,)

    def test_gate_and_up_are_cut_each_for_itself(self) -> None:
        (gate_up,) = (
            t for t in local_rectangles(MISTRAL_7B, RankLayout(4), 1, 0) if t.name == "layers.0.mlp.gate_up.weight"
        )
        assert [piece.rows for piece in gate_up.pieces] == [(3584, 7168), (17920, 21504)]
        assert [piece.local_rows for piece in gate_up.pieces] == [(0, 3584), (3584, 7168)]

    def test_only_the_last_rank_holds_padding(self) -> None:
        # 32,256 rows over four ranks are 8,064 each; 32,002 - 3 x 8,064 = 7,810 of the last one's are real
        padding = [local_rectangles(MISTRAL_7B, RankLayout(4), tp, 0)[0].padding_rows for tp in range(4)]
        assert padding == [None, None, None, (7810, 8064)]

    def test_a_rank_may_hold_padding_alone(self) -> None:
        # 130 rows pad to 256 at TP 2, where rank 1 begins at 128; at 120 it has none
        spec = spec_of("mistral", vocab_size=120)
        embedding = local_rectangles(spec, RankLayout(2), 1, 0)[0]
        assert (embedding.pieces, embedding.padding_rows) == ((), (0, 128))


class TestPipeline:
    def test_uneven_split(self) -> None:
        assert [layers_of_stage(10, 4, rank) for rank in range(4)] == [
            [range(3)],
            [range(3, 6)],
            [range(6, 8)],
            [range(8, 10)],
        ]

    def test_interleaved(self) -> None:
        assert [layers_of_stage(8, 2, rank, 2) for rank in (0, 1)] == [
            [range(2), range(4, 6)],
            [range(2, 4), range(6, 8)],
        ]

    def test_ends(self) -> None:
        spec = spec_of("mistral")
        first, last = ({t.name for t in local_rectangles(spec, RankLayout(1, 3), 0, pp)} for pp in (0, 2))
        assert {"embedding.weight", "layers.0.mlp_norm.weight"} <= first
        assert {"head.weight", "final_norm.weight", "layers.2.mlp_norm.weight"} <= last
        assert not first & last

    def test_a_tied_embedding_lies_on_both_ends(self) -> None:
        spec = spec_of("llama-tied")
        holders = [
            pp
            for pp in range(3)
            if any(t.name == "embedding.weight" for t in local_rectangles(spec, RankLayout(1, 3), 0, pp))
        ]
        assert holders == [0, 2]


class TestRefusing:
    def test_tensor_parallel_names_the_legal_sizes(self) -> None:
        assert legal_tensor_parallel(MISTRAL_7B) == [1, 2, 4, 8]
        with pytest.raises(ConfigError, match=r"expected one of 1, 2, 4, 8 .*8 key/value heads.*got 3"):
            check_layout(MISTRAL_7B, RankLayout(3))

    def test_nine_heads_go_by_three(self) -> None:
        smollm2 = spec_of(
            "llama-tied", hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536
        )
        assert legal_tensor_parallel(smollm2) == [1, 3]

    def test_more_runs_than_layers(self) -> None:
        with pytest.raises(ConfigError, match=r"at most 3 runs of layers .* got 4"):
            check_layout(spec_of("mistral"), RankLayout(1, 2, 2))

    def test_interleaving_without_a_pipeline(self) -> None:
        with pytest.raises(ConfigError, match="virtual_stages 2"):
            RankLayout(1, 1, 2)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any family with small dimensions of its own."""
    head_dim = 2 * draw(st.integers(1, 3))
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    changes: dict[str, Any] = {
        "num_hidden_layers": draw(st.integers(1, 9)),
        "hidden_size": draw(st.integers(1, 5)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": draw(st.sampled_from([24, 48, 56, 840])),
        "vocab_size": draw(st.integers(1, 2100)),
    }
    return spec_of(draw(st.sampled_from(list(CONFIGS))), **changes)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[ModelSpec, RankLayout]:
    """A model and any layout that is legal for it."""
    spec = draw(specs())
    tensor = draw(st.sampled_from(legal_tensor_parallel(spec, 8)))
    pipeline = draw(st.integers(1, min(8, spec.num_layers)))
    virtual = draw(st.integers(1, spec.num_layers // pipeline)) if pipeline > 1 else 1
    return spec, RankLayout(tensor, pipeline, virtual)


@settings(max_examples=60, deadline=None)
@given(cuts())
def test_split_and_merge_are_inverse(case: tuple[ModelSpec, RankLayout]) -> None:
    assert_inverse(*case)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tensor", range(1, 9))
def test_split_and_merge_are_inverse_on_every_layout_up_to_8_by_8(family: str, tensor: int) -> None:
    spec = spec_of(
        family,
        num_hidden_layers=9,
        hidden_size=3,
        num_attention_heads=2 * tensor,
        num_key_value_heads=tensor,
        head_dim=2,
        intermediate_size=5 * tensor,
        vocab_size=130,
    )
    for pipeline in range(1, 9):
        assert_inverse(spec, RankLayout(tensor, pipeline))


def assert_inverse(spec: ModelSpec, layout: RankLayout) -> None:
    """Cut a model whose numbers are all different, fill every rank, put it together again."""
    native = {
        tensor.name: np.arange(1, tensor.num_elements + 1, dtype=np.int32).reshape(tensor.shape)
        for tensor in native_tensors(spec)
    }
    merged: dict[str, Array] = {name: np.zeros_like(array) for name, array in native.items()}
    for tp, pp in layout.ranks:
        for tensor in local_rectangles(spec, layout, tp, pp):
            local = np.zeros(tensor.local_shape, np.int32)
            for piece in tensor.pieces:
                _at(local, piece.local_rows, piece.local_cols)[...] = cut(native[tensor.name], piece.rows, piece.cols)
            if tensor.padding_rows is None:
                assert (local != 0).all(), f"{tensor.name} has rows that nobody filled"
            for piece in tensor.pieces:
                _at(merged[tensor.name], piece.rows, piece.cols)[...] = cut(local, piece.local_rows, piece.local_cols)
    assert all(np.array_equal(merged[name], native[name]) for name in native)


@settings(max_examples=40, deadline=None)
@given(cuts())
def test_every_element_has_exactly_one_place_but_replicas(case: tuple[ModelSpec, RankLayout]) -> None:
    spec, layout = case
    shapes = {tensor.name: tensor.shape for tensor in native_tensors(spec)}
    places: dict[str, set[Any]] = {name: set() for name in shapes}
    for tp, pp in layout.ranks:
        for tensor in local_rectangles(spec, layout, tp, pp):
            places[tensor.name] |= {(piece.rows, piece.cols) for piece in tensor.pieces}
    for name, shape in shapes.items():
        check_cover(name, shape, places[name])


@settings(max_examples=40, deadline=None)
@given(specs(), st.integers(1, 8), st.integers(1, 10))
def test_a_layout_is_legal_or_refused(spec: ModelSpec, tensor: int, pipeline: int) -> None:
    legal = spec.num_kv_heads % tensor == 0 and spec.intermediate_size % tensor == 0 and pipeline <= spec.num_layers
    try:
        check_layout(spec, RankLayout(tensor, pipeline))
    except ConfigError:
        assert not legal
    else:
        assert legal


def _at(array: Array, rows: tuple[int, int], cols: tuple[int, int] | None) -> Array:
    part = array[rows[0] : rows[1]]
    return part if cols is None else part[:, cols[0] : cols[1]]
