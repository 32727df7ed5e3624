"""Which rectangle of which native tensor lies where in which rank's tensor: the only place that knows how a
model is cut.

Split and merge both read the list that ``local_rectangles`` makes, one from left to right and one from right
to left, so they are inverse by construction. Tensor parallel 2, two groups (q q k v) of heads, one layer:

    native qkv rows     [q0 q1 k0 v0 | q2 q3 k1 v1]     rank 0 | rank 1: whole key/value groups
    native gate_up      [g0 g1 g2 g3 . u0 u1 u2 u3]     rank 0 holds [g0 g1 . u0 u1]: two rectangles
    output, down        columns, as their input is what the rank before has
    embedding, head     contiguous rows of the vocabulary, padded to 128 x TP; padding is in no rectangle
    norms               whole on every rank

Pipeline: the layers are cut into ``pipeline_parallel x virtual_stages`` runs, the first runs one layer longer
where that does not divide; run i lies on rank ``i % pipeline_parallel``. The embedding lies on the first run,
final norm and head on the last; a tied embedding lies on both.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagecoach.architectures.registry import ModelSpec, TensorSpec, native_tensors
from stagecoach.errors import ConfigError
from stagecoach.parallel.rectangles import Span

VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class RankLayout:
    """How a model is cut over the ranks that together hold it once."""

    tensor_parallel: int = 1
    """Ranks that share every matrix."""
    pipeline_parallel: int = 1
    """Ranks that hold consecutive layers."""
    virtual_stages: int = 1
    """Runs of layers on each pipeline rank."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1, and interleaving without a pipeline."""
        for name in ("tensor_parallel", "pipeline_parallel", "virtual_stages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.virtual_stages > 1 and self.pipeline_parallel == 1:
            raise ConfigError(
                f"virtual_stages {self.virtual_stages}: expected pipeline_parallel of at least 2 with it, got 1"
            )

    @property
    def num_runs(self) -> int:
        """Runs of consecutive layers: pipeline ranks times virtual stages."""
        return self.pipeline_parallel * self.virtual_stages

    @property
    def ranks(self) -> list[tuple[int, int]]:
        """All ``(tp_rank, pp_rank)``, tensor rank fastest."""
        return [(tp, pp) for pp in range(self.pipeline_parallel) for tp in range(self.tensor_parallel)]

    def to_json(self) -> dict[str, int]:
        """Return the sizes by field name."""
        return {
            "tensor_parallel": self.tensor_parallel,
            "pipeline_parallel": self.pipeline_parallel,
            "virtual_stages": self.virtual_stages,
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """One rectangle of a native tensor and its place in a local one; columns are None for one-dimensional
    tensors.
    """

    rows: Span
    """Rows of the native tensor."""
    cols: Span | None
    """Columns of the native tensor."""
    local_rows: Span
    """Where these rows lie in the local tensor."""
    local_cols: Span | None
    """Where these columns lie in the local tensor."""


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """What one rank holds of one native tensor."""

    name: str
    """Native name, with the global layer number."""
    local_shape: tuple[int, ...]
    """Shape on this rank, padding included."""
    pieces: tuple[Piece, ...]
    """The rectangles of the native tensor in it, by local row; empty if this rank holds padding alone."""

    @property
    def padding_rows(self) -> Span | None:
        """Local rows at the end that belong to no native row, or None; only embedding and head have some."""
        filled = max((piece.local_rows[1] for piece in self.pieces), default=0)
        return None if filled == self.local_shape[0] else (filled, self.local_shape[0])


def padded_vocab_size(vocab_size: int, tensor_parallel: int) -> int:
    """Return the smallest multiple of 128 x ``tensor_parallel`` that holds the vocabulary.

    Examples:
        >>> padded_vocab_size(32_002, 4), padded_vocab_size(32_002, 1)
        (32256, 32128)
    """
    multiple = VOCABULARY_MULTIPLE * tensor_parallel
    return -(-vocab_size // multiple) * multiple


def layers_of_stage(num_layers: int, pipeline_parallel: int, pp_rank: int, virtual_stages: int = 1) -> list[range]:
    """Return the runs of global layer numbers on one pipeline rank, one for each virtual stage.

    Examples:
        >>> [layers_of_stage(10, 4, rank) for rank in range(4)]
        [[range(0, 3)], [range(3, 6)], [range(6, 8)], [range(8, 10)]]
        >>> layers_of_stage(8, 2, 0, virtual_stages=2)
        [range(0, 2), range(4, 6)]

    Raises:
        ConfigError: There are more runs than layers.
    """
    num_runs = pipeline_parallel * virtual_stages
    if num_runs > num_layers:
        raise ConfigError(
            f"pipeline_parallel {pipeline_parallel} x virtual_stages {virtual_stages}: expected at"
            f" most {num_layers} runs of layers"
            f" (the model has {num_layers} layers), got {num_runs}"
        )
    short, longer = divmod(num_layers, num_runs)
    starts = [index * short + min(index, longer) for index in range(num_runs + 1)]
    mine = range(pp_rank, num_runs, pipeline_parallel)
    return [range(starts[run], starts[run + 1]) for run in mine]


def legal_tensor_parallel(spec: ModelSpec, largest: int = 64) -> list[int]:
    """Return every tensor-parallel size up to ``largest`` that divides the key/value heads and the MLP's
    width.
    """
    return [
        size for size in range(1, largest + 1) if spec.num_kv_heads % size == 0 and spec.intermediate_size % size == 0
    ]


def check_layout(spec: ModelSpec, layout: RankLayout) -> None:
    """Refuse a layout that this model cannot be cut into.

    Raises:
        ConfigError: With the list of legal sizes.
    """
    legal = legal_tensor_parallel(spec)
    if layout.tensor_parallel not in legal:
        raise ConfigError(
            f"tensor_parallel: expected one of {', '.join(map(str, legal))} (it must divide"
            f" {spec.num_kv_heads} key/value heads and"
            f" an MLP of {spec.intermediate_size}), got {layout.tensor_parallel}"
        )
    layers_of_stage(spec.num_layers, layout.pipeline_parallel, 0, layout.virtual_stages)


def local_rectangles(spec: ModelSpec, layout: RankLayout, tp_rank: int, pp_rank: int) -> list[LocalTensor]:
    """Return what one rank holds: its local tensors and the native rectangles in each, in native order.

    Raises:
        ConfigError: The layout does not fit the model.
        ValueError: A rank is outside the layout.
    """
    check_layout(spec, layout)
    if not (0 <= tp_rank < layout.tensor_parallel and 0 <= pp_rank < layout.pipeline_parallel):
        raise ValueError(f"rank (tp {tp_rank}, pp {pp_rank}): expected one inside {layout}")
    runs = layers_of_stage(spec.num_layers, layout.pipeline_parallel, pp_rank, layout.virtual_stages)
    layers = {layer for run in runs for layer in run}
    first, last = pp_rank == 0, pp_rank == layout.pipeline_parallel - 1

    def is_here(tensor: TensorSpec) -> bool:
        if tensor.layer is not None:
            return tensor.layer in layers
        if tensor.kind == "embedding":
            return first or (last and spec.tied_embeddings)
        return last

    return [
        local_tensor(spec, tensor, layout.tensor_parallel, tp_rank)
        for tensor in native_tensors(spec)
        if is_here(tensor)
    ]


def local_tensor(spec: ModelSpec, tensor: TensorSpec, tensor_parallel: int, tp_rank: int) -> LocalTensor:
    """Return what tensor rank ``tp_rank`` holds of one native tensor."""
    rows = tensor.shape[0]
    match tensor.kind:
        case "embedding" | "head":
            share = padded_vocab_size(spec.vocab_size, tensor_parallel) // tensor_parallel
            spans = [(tp_rank * share, min((tp_rank + 1) * share, rows))]
            local_rows = share
        case "qkv":
            local_rows = rows // tensor_parallel
            spans = [(tp_rank * local_rows, (tp_rank + 1) * local_rows)]
        case "gate_up":
            share = spec.intermediate_size // tensor_parallel
            spans = [(start + tp_rank * share, start + (tp_rank + 1) * share) for start in (0, spec.intermediate_size)]
            local_rows = 2 * share
        case "output" | "down":
            return _by_columns(tensor, tensor_parallel, tp_rank)
        case "norm" | "head_norm":
            spans, local_rows = [(0, rows)], rows
    cols = (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
    pieces = []
    at = 0
    for start, end in spans:
        if start < end:
            pieces.append(Piece((start, end), cols, (at, at + end - start), cols))
            at += end - start
    return LocalTensor(tensor.name, (local_rows, *tensor.shape[1:]), tuple(pieces))


def _by_columns(tensor: TensorSpec, tensor_parallel: int, tp_rank: int) -> LocalTensor:
    rows, columns = tensor.shape
    share = columns // tensor_parallel
    piece = Piece((0, rows), (tp_rank * share, (tp_rank + 1) * share), (0, rows), (0, share))
    return LocalTensor(tensor.name, (rows, share), (piece,))
