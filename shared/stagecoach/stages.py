"""The table of tasks: what each one reads, what it writes, which stage runs it. Plan, workflow, tests and docs read it.

    download-model ------> models --> convert --> native --> shard --> shards ---+
    download-tokenizer --> tokenizers --+--^                                     v
    download-data -------> datasets --> pack --> packed ---------------------> train --> trained --> export --> exports

The content key of ``train`` takes the key of ``native``, not of ``shards``: the same training on another layout is the
same work. ``key_inputs`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagecoach.recipe.base import Section
from stagecoach.recipe.convert import ConvertConfig
from stagecoach.recipe.download import DownloadDataConfig, DownloadModelConfig, DownloadTokenizerConfig
from stagecoach.recipe.export import ExportConfig
from stagecoach.recipe.shard import ShardConfig
from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach.recipe.train import TrainConfig

STAGES: tuple[str, ...] = ("download", "convert", "shard", "pack", "train", "export")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskKind:
    """One row of the table."""

    name: str
    """Name of the task; tasks of a kind with ``per_source`` add ``-<source name>``."""
    stage: str
    """The stage that runs it: package ``stagecoach_<stage>``, image ``stagecoach-<stage>``."""
    writes: str
    """Top folder of its outputs in the store."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Input name -> task kind whose output it is."""
    key_inputs: Mapping[str, str] | None = None
    """Input name -> task kind whose key enters this task's key; None takes ``reads``."""
    output_version: int = 1
    """Counted up when the same config gives other bytes."""
    config: type[Section]
    """Type of its resolved config."""
    named_after: str
    """``model`` or ``data``: whose name the output's folder carries."""
    per_source: bool = False
    """One task for each data source."""
    has_effects: bool = False
    """The stage's ``finish`` does more with the finished output (a push, a promotion), with a record of its own."""


TASKS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (
        TaskKind(
            name="download-model",
            stage="download",
            writes="sources/models",
            config=DownloadModelConfig,
            named_after="model",
        ),
        TaskKind(
            name="download-tokenizer",
            stage="download",
            writes="sources/tokenizers",
            output_version=2,  # add_prefix_space, for llama.cpp
            config=DownloadTokenizerConfig,
            named_after="model",
        ),
        TaskKind(
            name="download-data",
            stage="download",
            writes="sources/datasets",
            config=DownloadDataConfig,
            named_after="data",
            per_source=True,
        ),
        TaskKind(
            name="convert",
            stage="convert",
            writes="native",
            reads={"model": "download-model", "tokenizer": "download-tokenizer"},
            config=ConvertConfig,
            named_after="model",
        ),
        TaskKind(
            name="shard",
            stage="shard",
            writes="shards",
            reads={"native": "convert"},
            config=ShardConfig,
            named_after="model",
        ),
        TaskKind(
            name="pack",
            stage="pack",
            writes="packed",
            reads={"tokenizer": "download-tokenizer", "data": "download-data"},
            output_version=4,  # what is trained of first answers, of system messages and behind several cuts
            config=PackTaskConfig,
            named_after="data",
        ),
        TaskKind(
            name="train",
            stage="train",
            writes="trained",
            reads={"shards": "shard", "packed": "pack", "tokenizer": "download-tokenizer"},
            key_inputs={"native": "convert", "packed": "pack"},
            config=TrainConfig,
            named_after="model",
        ),
        TaskKind(
            name="export",
            stage="export",
            writes="exports",
            reads={
                "trained": "train",
                "native": "convert",
                "tokenizer": "download-tokenizer",
                "packed": "pack",
            },
            key_inputs={"trained": "train"},
            output_version=2,  # config.json always names its model_type and its class
            config=ExportConfig,
            named_after="model",
            has_effects=True,
        ),
    )
}


def diagram() -> str:
    """Return the table as a Mermaid flow chart, as it stands in docs/architecture.md."""
    lines = ["flowchart LR", *(f"    {kind.name}[{kind.name}<br/>{kind.writes}/]" for kind in TASKS.values())]
    for kind in TASKS.values():
        lines.extend(f"    {source} --> {kind.name}" for source in kind.reads.values())
    return "\n".join(lines)
