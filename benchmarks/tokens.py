"""How fast the pack stage makes tokens, against the bare tokenizer, and how much memory of its own it takes.

    python -m benchmarks.tokens         writes results/tokens.json, exits 1 beyond a limit of floors.toml

The rows are the project's own conversations joined at random to longer ones, in Mistral's tokenizer. The peer is
``tokenizers.encode_batch`` on the same texts, rendered beforehand, ids taken out: what nothing in Python can beat by
much. The stage does everything else too: it reads and checks JSON, removes duplicates, labels, packs, hashes and
stores. On a busy machine only the figures a CPU second mean something. The peak of anonymous memory is that of packing
a million two-line rows, and ten thousand for comparison.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.floors import judge
from stagecoach.formats.tokenizer import ChatTokenizer, build_final_tokenizer
from stagecoach.outputs import Input, Output, open_input
from stagecoach.recipe.data import DataSource
from stagecoach.recipe.source import EmbeddedSource
from stagecoach.recipe.tasks import PackTaskConfig
from stagecoach.storage.local import LocalStore
from stagecoach_pack.chat import Renderer
from stagecoach_pack.run import run
from stagecoach_pack.sources.schemas import RowReader

_BATCH = 2000
_TALKS_A_ROW = 6


def installed(package: str, name: str) -> Path:
    """Return a file that an installed package carries."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed; run make setup")
    return Path(spec.origin).parent / name


def long_rows(number: int) -> Iterator[dict[str, Any]]:
    """Yield conversations of several demo conversations each, their words shuffled so that no cache can help."""
    lines = installed("stagecoach.demo", "chat.jsonl").read_text(encoding="utf-8").splitlines()
    talks = [json.loads(line)["messages"] for line in lines]
    draw = random.Random(0)
    for index in range(number):
        messages = []
        for message in (message for talk in draw.choices(talks, k=_TALKS_A_ROW) for message in talk):
            words = (message["content"] or "").split(" ")
            draw.shuffle(words)
            messages.append(
                {"role": "user" if message["role"] != "assistant" else "assistant", "content": " ".join(words)}
            )
        yield {"id": str(index), "messages": [*messages, {"role": "assistant", "content": f"That was number {index}."}]}


def short_rows(number: int) -> Iterator[dict[str, Any]]:
    """Yield conversations of a question and an answer."""
    for index in range(number):
        question, answer = f"What is {index} plus {index * 7}?", f"It is {index * 8}."
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def prepare(folder: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write tokenizer and data as finished inputs."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "source").mkdir(parents=True)
    model = installed("mistral_common", "data/tokenizer.model.v1")
    (folder / "source" / "tokenizer.model").write_bytes(model.read_bytes())
    store = LocalStore(folder / "store")
    tokenizer = Output(store, "tokenizer/", folder / "scratch")
    for name, data in build_final_tokenizer(folder / "source", "chatml").items():
        tokenizer.write_bytes(name, data)
    commit(tokenizer)
    chat = Output(store, "data/", folder / "scratch")
    with chat.create("chat.jsonl") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    commit(chat)


def commit(output: Output) -> None:
    """Make an output complete."""
    output.commit(task="bench", key="0" * 20, name="bench", output_version=1)


def opened(folder: Path, prefix: str) -> Input:
    """Open a finished output."""
    return open_input(LocalStore(folder / "store"), prefix, folder / "scratch")


def bare_tokenizer(folder: Path) -> dict[str, float]:
    """Encode the rendered texts with ``encode_batch``; returns tokens and seconds."""
    files = opened(folder, "tokenizer/")
    tokenizer = ChatTokenizer({name: files.read_bytes(name) for name in files.names()}, "bench")
    renderer = Renderer(tokenizer, "assistant")
    reader = RowReader(DataSource(name="bench", source=EmbeddedSource()), "messages")
    with open(opened(folder, "data/").path("chat.jsonl"), encoding="utf-8") as lines:
        texts = [renderer.render(reader.read(json.loads(line))).text for line in lines]
    bare = tokenizer.bare
    bare.encode_batch(texts[:_BATCH], add_special_tokens=False)
    start, cpu, tokens = time.perf_counter(), time.process_time(), 0
    for first in range(0, len(texts), _BATCH):
        for encoding in bare.encode_batch(texts[first : first + _BATCH], add_special_tokens=False):
            tokens += len(encoding.ids)
    return {"tokens": tokens, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def pack_stage(folder: Path) -> dict[str, float]:
    """Run the stage; returns tokens and seconds."""
    source = {"name": "bench", "source": {"kind": "embedded"}}
    pack = {"pack_tokens": 16_384, "too_long": "error"}
    config = PackTaskConfig.model_validate({"data": {"name": "bench", "sources": [source]}, "pack": pack})
    inputs = {"tokenizer": opened(folder, "tokenizer/"), "data-bench": opened(folder, "data/")}
    store = LocalStore(folder / "store")
    output = Output(store, "packed/", folder / "scratch")
    start, cpu = time.perf_counter(), time.process_time()
    run(config, inputs, output, store)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"tokens": output.summary["num_tokens"], "seconds": seconds, "cpu_seconds": cpu_seconds}


def in_a_process(work: Callable[[Path], dict[str, float]], folder: Path) -> dict[str, float]:
    """Do some work in a fresh process; adds its rate and its peak of anonymous memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, folder, sender))
    process.start()
    found: dict[str, float] = receiver.recv()
    process.join()
    return found


def _child(work: Callable[[Path], dict[str, float]], folder: Path, sender: Any) -> None:
    peak_kib = [0]

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            peak_kib[0] = max(peak_kib[0], int(line.split()[1]))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    found = work(folder)
    rates = {
        "tokens_per_second": round(found["tokens"] / found["seconds"]),
        "tokens_per_cpu_second": round(found["tokens"] / found["cpu_seconds"]),
    }
    shown = {name: round(value, 2) for name, value in found.items()}
    sender.send({**shown, **rates, "anonymous_mib": peak_kib[0] // 1024})


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="conversations for the rate")
    parser.add_argument("--short-rows", type=int, default=1_000_000, help="rows for the memory")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/stagecoach-bench-tokens"))
    results_file = Path(__file__).with_name("results") / "tokens.json"
    parser.add_argument("--result", type=Path, metavar="FILE", default=results_file, help="all figures, as JSON")
    options = parser.parse_args()
    result: dict[str, Any] = {"cpus": os.cpu_count(), "rows": options.rows, "load": os.getloadavg()[0]}
    prepare(options.folder, long_rows(options.rows))
    result["tokenizers.encode_batch"] = in_a_process(bare_tokenizer, options.folder)
    result["pack stage"] = in_a_process(pack_stage, options.folder)
    for rate in ("tokens_per_second", "tokens_per_cpu_second"):
        share = result["pack stage"][rate] / result["tokenizers.encode_batch"][rate]
        result[f"share_of_bare_{rate}"] = round(share, 3)
    for number in (10_000, options.short_rows):
        prepare(options.folder, short_rows(number))
        result[f"{number} short rows"] = in_a_process(pack_stage, options.folder)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    few, many = result["10000 short rows"], result[f"{options.short_rows} short rows"]
    return judge(
        "tokens",
        {
            "tokens_per_second": result["pack stage"]["tokens_per_second"],
            "share_of_bare": result["share_of_bare_tokens_per_second"],
            "share_of_bare_per_cpu_second": result["share_of_bare_tokens_per_cpu_second"],
            "anonymous_mib": max(result["pack stage"]["anonymous_mib"], many["anonymous_mib"]),
            "anonymous_mib_10000_short_rows": few["anonymous_mib"],
            f"anonymous_mib_{options.short_rows}_short_rows": many["anonymous_mib"],
            "anonymous_growth_mib": many["anonymous_mib"] - few["anonymous_mib"],
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
