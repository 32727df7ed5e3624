"""The tasks of one recipe."""

from __future__ import annotations

from stagecoach_workflows.graph import task_nodes


def test_each_data_source_gets_a_download_of_its_own() -> None:
    assert list(task_nodes(["a", "b"])) == [
        "download-model",
        "download-tokenizer",
        "download-data-a",
        "download-data-b",
        "convert",
        "shard",
        "pack",
        "train",
        "export",
    ]


def test_pack_reads_every_data_source_under_its_name() -> None:
    assert task_nodes(["a", "b"])["pack"].reads == {
        "tokenizer": "download-tokenizer",
        "data-a": "download-data-a",
        "data-b": "download-data-b",
    }


def test_the_key_of_train_takes_native_and_not_shards() -> None:
    train = task_nodes(["a"])["train"]
    assert train.key_inputs == {"native": "convert", "packed": "pack"}
    assert "shards" in train.reads


def test_a_task_comes_after_everything_it_reads() -> None:
    seen: set[str] = set()
    for task, node in task_nodes(["a", "b"]).items():
        assert seen.issuperset(node.reads.values())
        seen.add(task)
