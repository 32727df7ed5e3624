"""One machine of several fetches what its ranks read and nothing more, whatever layout wrote the checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.architectures.registry import native_tensors
from stagecoach.formats.checkpoint import (
    INDEX_NAME,
    CheckpointIndex,
    Kind,
    StoredPiece,
    piece_tensor_name,
    rank_file_name,
)
from stagecoach.formats.shards import SHARDS_JSON, shard_file_name
from stagecoach.formats.tensor_file import Array, TensorToWrite, write_tensor_file
from stagecoach.outputs import Output
from stagecoach.parallel.slicing import RankLayout
from stagecoach.paths import checkpoint_prefix
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach_train.inputs import check_files, ranks_here
from stagecoach_train.job import CHECKPOINT, Assignment, Job
from stagecoach_train.parallel.shares import wants_of_rank
from stagecoach_train.sources import CheckpointSource, ShardSource
from stagecoach_train.train_state import CheckpointRef, TrainState
from tests.counting_store import CountingStore, counting_store
from tests.unit.stagecoach_train.tiny_inputs import SPEC, tiny_inputs

BLOCK_BYTES = 256
TRAINED = "trained/tiny-0123456789abcdef/"
RESUMED = Assignment(2, CheckpointRef(4, 1))
KINDS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq")
LAYOUTS: list[dict[str, Any]] = [
    {"pipeline_parallel": 2},
    {"tensor_parallel": 2},
    {"data_parallel": 2},
    {"data_parallel": 2, "data_parallel_kind": "fsdp"},
]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    return counting_store(monkeypatch, BLOCK_BYTES)


def job_of(store: CountingStore, folder: Path, assignment: Assignment, layout: dict[str, Any]) -> Job:
    config = TrainConfig.model_validate({"steps": 6, "compute_dtype": "fp32", "nodes": 2, "layout": layout})
    inputs = {name: f"{name}/tiny-0123456789abcdef/" for name in ("shards", "packed")}
    return Job(
        store_url=store.url, trained=TRAINED, config=config, inputs=inputs, scratch=folder, assignment=assignment
    )


def path_in(files: dict[str, str]) -> Callable[[str], Path]:
    """The local file of an object."""
    return lambda name: Path(files[name])


def write_checkpoint(store: CountingStore, folder: Path) -> dict[tuple[str, str], Array]:
    """Write what one rank writes, all in one file; returns the tensors by name and kind."""
    random = np.random.default_rng(3)
    tensors: dict[tuple[str, str], Array] = {}
    entries: list[tuple[str, Kind, StoredPiece]] = []
    to_write = []
    for tensor in native_tensors(SPEC):
        rows, cols = (0, tensor.shape[0]), (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
        for kind in KINDS:
            array = tensors[tensor.name, kind] = random.normal(1.0, 0.1, tensor.shape).astype(np.float32)
            name = piece_tensor_name(tensor.name, kind, rows, cols)
            entries.append((tensor.name, kind, StoredPiece.whole(rank_file_name(0), name, rows, cols)))
            to_write.append(TensorToWrite(name, array.dtype, array.shape, functools.partial(np.asarray, array)))
    output = Output(store, checkpoint_prefix(TRAINED, 4, 1), folder / "made")
    with output.create(rank_file_name(0)) as stream:
        write_tensor_file(stream, to_write)
    state = TrainState(step=4).to_json()
    output.write_bytes(INDEX_NAME, CheckpointIndex.build(SPEC, entries, state).to_bytes())
    output.summary.update(state)
    output.commit(task="checkpoint", key="0123456789abcdef", name="tiny", output_version=1)
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_resumed_rank_fetches_its_rectangles_of_another_layouts_checkpoint(
    layout: dict[str, Any], store: CountingStore, tmp_path: Path
) -> None:
    tiny_inputs(store, tmp_path / "make")
    tensors = write_checkpoint(store, tmp_path)
    whole_bytes = sum(array.nbytes for array in tensors.values())
    for rank in range(2):
        job = job_of(store, tmp_path / str(rank), RESUMED, layout)
        store.ranges.clear()
        files = check_files(job, store, range(rank, rank + 1))
        assert list(files["shards"]) == [SHARDS_JSON]
        source = CheckpointSource(path_in(files[CHECKPOINT]))
        wanted_bytes, num_spans = 0, 0
        for want in wants_of_rank(job.config, SPEC, rank):
            if want.kind not in KINDS:
                continue
            cols = slice(None) if want.cols is None else slice(*want.cols)
            expected = tensors[want.name, want.kind][slice(*want.rows)]
            expected = expected if want.cols is None else expected[:, cols]
            assert np.array_equal(source(want.name, want.kind, want.rows, want.cols), expected), want
            span = tensors[want.name, want.kind][slice(*want.rows)]  # whole rows
            wanted_bytes, num_spans = wanted_bytes + span.nbytes, num_spans + 1
        fetched_bytes = sum(size for _, size in store.ranges)
        header_bytes = 16_384
        assert fetched_bytes <= wanted_bytes + 2 * BLOCK_BYTES * num_spans + header_bytes
        assert fetched_bytes < 0.95 * whole_bytes


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_starting_rank_fetches_its_rectangles_of_the_shards(
    layout: dict[str, Any], store: CountingStore, tmp_path: Path
) -> None:
    inputs = tiny_inputs(store, tmp_path / "make")
    whole = ShardSource(inputs["shards"].path, (0, 0))
    whole("final_norm.weight", (0, SPEC.hidden_size), None)
    store.files.clear()
    for rank in range(2):
        job = job_of(store, tmp_path / str(rank), Assignment(1, None), layout)
        files = check_files(job, store, range(rank, rank + 1))
        source = ShardSource(path_in(files["shards"]), (0, 0))
        for want in wants_of_rank(job.config, SPEC, rank):
            if want.kind == "weight":
                found = source(want.name, want.rows, want.cols)
                assert np.array_equal(found, whole(want.name, want.rows, want.cols)), want
    assert not any(shard_file_name(RankLayout(1, 1, 1), 0, 0) in key for key in store.files)


def test_a_machine_with_all_ranks_copies_and_checks_everything(store: CountingStore, tmp_path: Path) -> None:
    tiny_inputs(store, tmp_path / "make")
    write_checkpoint(store, tmp_path)
    files = check_files(job_of(store, tmp_path / "all", RESUMED, LAYOUTS[0]), store, None)
    assert sorted(files[CHECKPOINT]) == [INDEX_NAME, rank_file_name(0)]
    assert store.ranges == []


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        ({}, 1, None),
        ({"main_address": "a", "main_port": 1, "node_rank": 1}, 2, range(2, 4)),
        ({"world_size": 4, "rank": 3, "local_rank": 1, "local_world_size": 2}, 1, range(2, 4)),
        ({"world_size": 4, "rank": 3, "local_rank": 3, "local_world_size": 4}, 1, None),
        ({"world_size": 4, "rank": 3, "local_rank": 1}, 1, None),  # it does not say how many are here
    ],
)
def test_the_ranks_of_this_machine(settings: dict[str, Any], nodes: int, expected: range | None) -> None:
    config = TrainConfig(nodes=nodes, layout={"data_parallel": 4})  # type: ignore[arg-type]
    assert ranks_here(Settings(**settings), config) == expected
