"""How fast convert, shard and export move a model, and how much memory of their own they take.

    python benchmarks/models.py --layers 8 --folder /tmp/bench --result benchmarks/results/models.json

Mistral-7B's shapes with random bf16 weights (8 of 32 layers: 4 GB), a directory store, each stage in a
process of its own.
Beside each stage stands what its bytes cost at least: cp of the input to the output's place, fsync, and
sha256 of both.
``--peer`` adds transformers' load and save_pretrained. Memory is the peak of RssAnon: mapped files are not
counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.architectures.hf_names import hub_tensors
from stagecoach.architectures.registry import ModelSpec
from stagecoach.formats.hf_model import HUB_METADATA, hub_weight_files
from stagecoach.formats.tensor_file import BFLOAT16, Array, TensorToWrite, write_tensor_file
from stagecoach.manifest import Digests
from stagecoach.outputs import Input, Output, open_input
from stagecoach.recipe.convert import ConvertConfig
from stagecoach.recipe.export import ExportConfig
from stagecoach.recipe.shard import ShardConfig
from stagecoach.storage.local import LocalStore

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
PREFIXES = {"model": "sources/models/b-0/", "native": "native/b-0/", "shards": "shards/b-0/", "exports": "exports/b-0/"}


def random_bf16(name: str, rows: int, columns: int) -> Iterator[Array]:
    """Yield rows of finite bf16 bit patterns."""
    generator = np.random.default_rng(abs(hash(name)) % 2**32)
    for start in range(0, rows, 1024):
        size = min(1024, rows - start)
        bits = generator.integers(0, 2**16, (size, columns), np.uint16)
        # Without the exponent's highest bit every number is below 2.
        yield (bits & np.uint16(0xBFFF)).view(BFLOAT16)


def make_source(store: LocalStore, scratch: Path, layers: int) -> None:
    """Write the Hub directory and a tokenizer as finished inputs."""
    spec = ModelSpec.from_hf_config({**CONFIG, "num_hidden_layers": layers})
    output = Output(store, PREFIXES["model"], scratch)
    output.write_bytes("config.json", json.dumps({**CONFIG, "num_hidden_layers": layers}).encode())
    tensors = [
        TensorToWrite(tensor.name, BFLOAT16, tensor.shape, lambda t=tensor: random_rows(t.name, t.shape))  # type: ignore[misc]
        for tensor in hub_tensors(spec)
    ]
    files, index = hub_weight_files(tensors, 5_000_000_000)
    for file, mine in files.items():
        with output.create(file) as stream:
            write_tensor_file(stream, mine, HUB_METADATA)
    if index is not None:
        output.write_bytes("model.safetensors.index.json", index)
    output.commit(task="t", key="0", name="b", output_version=1)
    words = {f"w{at}": at for at in range(32000)} | {"<|im_start|>": 32000, "<|im_end|>": 32001}
    tokenizer = Output(store, "sources/tokenizers/b-0/", scratch)
    tokenizer.write_bytes("tokenizer.json", json.dumps({"model": {"vocab": words}}).encode())
    tokenizer.write_bytes("tokenizer_config.json", json.dumps({"eos_token": "<|im_end|>"}).encode())
    tokenizer.commit(task="t", key="0", name="b", output_version=1)


def random_rows(name: str, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield a tensor of one or two dimensions."""
    for part in random_bf16(name, shape[0], shape[1] if len(shape) == 2 else 1):
        yield part if len(shape) == 2 else part.reshape(-1)


def run_stage(stage: str, root: Path) -> None:
    """Run one stage on the store below ``root``."""
    store = LocalStore(root / "store")
    scratch = root / "scratch"

    def opened(kind: str) -> Input:
        return open_input(store, PREFIXES.get(kind, kind), scratch)

    if stage == "convert":
        from stagecoach_convert.run import run as convert

        output = Output(store, PREFIXES["native"], scratch)
        inputs = {"model": opened("model"), "tokenizer": opened("sources/tokenizers/b-0/")}
        convert(ConvertConfig(), inputs, output, store)
    elif stage == "shard":
        from stagecoach_shard.run import run as shard

        output = Output(store, PREFIXES["shards"], scratch)
        shard(ShardConfig(tensor_parallel=4), {"native": opened("native")}, output, store)
    else:
        from stagecoach_export.run import run as export

        output = Output(store, PREFIXES["exports"], scratch)
        inputs = {
            "native": opened("native"),
            "tokenizer": opened("sources/tokenizers/b-0/"),
            "trained": opened("trained/b-0/"),
        }
        export(ExportConfig(), inputs, output, store)
    output.commit(task="t", key="0", name="b", output_version=1)


def make_trained(root: Path) -> None:
    """Turn the shards into the checkpoint of four ranks, by hard links: shards are checkpoints whose index is
    computed.
    """
    from stagecoach.formats.checkpoint import CheckpointIndex
    from stagecoach.formats.shards import Shards, shard_file_name, shards_as_pieces

    store = LocalStore(root / "store")
    shards = open_input(store, PREFIXES["shards"], root / "scratch")
    found = Shards.from_bytes(shards.read_bytes("shards.json"))
    entries = shards_as_pieces(found.spec, found.layout, lambda tp, pp: f"rank-{tp:05d}.safetensors")
    index = CheckpointIndex.build(found.spec, entries).to_bytes()
    output = Output(store, "trained/b-0/", root / "scratch")
    key = "trained/b-0/iter_0000001/attempt-0001/index.json"
    store.put(key, index)
    digests = Digests()
    digests.update(index)
    output.adopt("iter_0000001/index.json", digests.entry(key))
    for tp, pp in found.layout.ranks:
        output.adopt(f"iter_0000001/rank-{tp:05d}.safetensors", shards.entry(shard_file_name(found.layout, tp, pp)))
    output.summary.update({"last": 1, "best": None, "iterations": [1]})
    output.commit(task="t", key="0", name="b", output_version=1)


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Run ``work`` in a fresh process; return seconds and its peak of anonymous memory in MiB."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[float, float]] = context.Queue()
    process = context.Process(target=_watched, args=(work, queue))
    process.start()
    seconds, peak = queue.get()
    process.join()
    return {"seconds": round(seconds, 2), "peak_anonymous_mib": round(peak, 1)}


def _watched(work: Callable[[], None], queue: Any) -> None:
    peak = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    thread.join()
    queue.put((seconds, peak))


def _anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Stage:
    """One stage as a picklable call."""

    def __init__(self, stage: str, root: Path) -> None:
        """Name the stage."""
        self.stage = stage
        self.root = root

    def __call__(self) -> None:
        """Run it."""
        run_stage(self.stage, self.root)


class Floor:
    """What the bytes cost at least: copy, fsync, and sha256 of both sides."""

    def __init__(self, files: list[Path], folder: Path) -> None:
        """Copy ``files`` to ``folder``."""
        self.files = files
        self.folder = folder

    def __call__(self) -> None:
        """Do it."""
        self.folder.mkdir(parents=True)
        for at, file in enumerate(self.files):
            copy = self.folder / str(at)
            # As cp does by default on this file system; buffered, so that both sides pass through memory.
            with open(file, "rb") as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target, 4 * 1024 * 1024)
                target.flush()
                os.fsync(target.fileno())
            for side in (file, copy):
                with open(side, "rb") as stream:
                    hashlib.file_digest(stream, "sha256")
        shutil.rmtree(self.folder)


class Peer:
    """transformers: load the model and save it again."""

    def __init__(self, source: Path, target: Path) -> None:
        """Name both folders."""
        self.source = source
        self.target = target

    def __call__(self) -> None:
        """Do it."""
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(self.source, dtype="bfloat16")
        model.save_pretrained(self.target)


def weight_files(root: Path, kind: str) -> list[Path]:
    """Return the safetensors files of one output."""
    found = open_input(LocalStore(root / "store"), PREFIXES.get(kind, kind), root / "scratch")
    paths = [found.store.local_path(found.entry(name).path) for name in found.names() if name.endswith(".safetensors")]
    return [path for path in paths if path is not None]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    root: Path = options.folder
    shutil.rmtree(root, ignore_errors=True)
    make_source(LocalStore(root / "store"), root / "scratch", options.layers)
    result: dict[str, Any] = {"layers": options.layers, "cpus": os.cpu_count()}
    result["weights_gb"] = round(sum(path.stat().st_size for path in weight_files(root, "model")) / 1e9, 3)
    for stage, reads in (("convert", "model"), ("shard", "native"), ("export", "trained/b-0/")):
        if stage == "export":
            make_trained(root)
        floor = measured(Floor(weight_files(root, reads), root / "floor"))
        found = measured(Stage(stage, root))
        found["floor_seconds"] = floor["seconds"]
        found["share_of_floor_speed"] = round(floor["seconds"] / found["seconds"], 2)
        result[stage] = found
        print(json.dumps({stage: found}), flush=True)
    if options.peer:
        source = root / "hub"
        source.mkdir()
        model = open_input(LocalStore(root / "store"), PREFIXES["model"], root / "scratch")
        for name in model.names():
            os.link(root / "store" / model.entry(name).path, source / name)
        result["transformers load + save_pretrained"] = measured(Peer(source, root / "peer"))
    print(json.dumps(result))
    if options.result is not None:
        options.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
