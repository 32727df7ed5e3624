"""The train stage: take the attempt, find where to go on, start the ranks, and hand over the last and the best
checkpoint.

trained output done? ----------------------------------------------------------> nothing to do
take attempt N  (waits for another run that is alive; fences off everything older)
newest intact checkpoint, or the shards  ->  ranks train, saving as they go  ->  manifest of last and best
"""

from __future__ import annotations

import logging
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stagecoach.errors import ConfigError, InterruptedWithProgress, MissingInputError
from stagecoach.formats.packed import PackedSplit
from stagecoach.formats.shards import SHARDS_JSON, Shards
from stagecoach.manifest import Digests, read_manifest
from stagecoach.outputs import Input, Output
from stagecoach.paths import checkpoint_prefix
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach_train.attempts import Heartbeat, take_attempt
from stagecoach_train.checkpointing import committed_checkpoints, find_newest_intact
from stagecoach_train.inputs import check_inputs, ranks_here
from stagecoach_train.job import CHECKPOINT, Assignment, Job
from stagecoach_train.launcher import Launcher, World
from stagecoach_train.planning import TrainingPlan, memory_without_gpu
from stagecoach_train.signals import LAST_WORD_SECONDS, StopRequest, deadline_unix_seconds
from stagecoach_train.train_state import CheckpointRef, TrainState

_log = logging.getLogger("stagecoach.train")


def run(config: TrainConfig, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    """Train the model of ``inputs["shards"]`` on the packs of ``inputs["packed"]``.

    Args:
        config: The train section of the recipe.
        inputs: ``shards``, ``packed``, and ``tokenizer`` (read only if the recipe has prompts or tasks).
        output: Takes the last and the best checkpoint, and the metrics.
        store: Where everything is kept.

    Raises:
        ConfigError: Another launcher started another number of ranks than the layout has.
        InterruptedWithProgress: Stopped early, with everything saved.
        NoProgressError: Three attempts of this run got nowhere.
        DataError: Some step has nothing to learn from, or too many gradients were not finite.
        AcceleratorError: A rank, a GPU or the communication between ranks failed.
    """
    settings = Settings.from_environ()
    size = config.layout.world_size
    if settings.world_size not in (None, size):
        raise ConfigError(
            f"WORLD_SIZE is {settings.world_size}: expected {size}, as train.layout has; start {size} ranks"
            " (--nproc-per-node of torchrun), or change train.layout"
        )
    stop = StopRequest(
        deadline=deadline_unix_seconds(settings.deadline_iso8601), budget_seconds=config.wall_clock_budget_seconds
    )
    job = Job(
        store_url=store.url,
        trained=output.prefix,
        config=config,
        inputs={name: source.prefix for name, source in inputs.items()},
        scratch=output.scratch,
    )
    elsewhere = settings.rank if settings.world_size is not None else None
    first_machine = elsewhere == 0 or (elsewhere is None and (config.nodes == 1 or settings.node_rank == 0))
    stop.expendable = True
    with stop.listening(ends_process=True):
        if first_machine:
            with _attempt(job, output, stop) as attempted:
                # Ranks elsewhere wait to be told, also that there is nothing to do.
                has_peers = elsewhere is not None or config.nodes > 1
                if has_peers or (attempted.assignment is not None and attempted.assignment.attempt):
                    _train(attempted, settings, stop, store)
        else:
            _train(job, settings, stop, store)
    _hand_over(output, store)


def check(config: TrainConfig, inputs: Mapping[str, Input]) -> None:
    """Refuse what cannot work before anything is loaded, and print the plan: steps, micro-batches, memory a rank.

    Raises:
        ConfigError: Layout or memory do not fit the model.
        DataError: Some step has nothing to learn from.
    """
    spec = Shards.from_bytes(inputs["shards"].read_bytes(SHARDS_JSON), inputs["shards"].prefix + SHARDS_JSON).spec
    train, heldout = (PackedSplit.open(inputs["packed"], split) for split in ("train", "heldout"))
    plan = TrainingPlan.of(config, spec, train, heldout, memory_without_gpu(config))
    _log.info("%s", plan.table())


@contextmanager
def _attempt(job: Job, output: Output, stop: StopRequest) -> Iterator[Job]:
    """Hold the attempt for the length of the block: its number, where to go on, its heartbeat."""
    store = output.store
    run_id = output.run_id or f"by-hand-{secrets.token_hex(8)}"
    number = take_attempt(store, job.trained, run_id, lambda: committed_checkpoints(store, job.trained), stop.check)
    if number is None:
        _log.info("another run has finished this training")
        yield job.with_assignment(Assignment(0, None), None)
        return
    heartbeat = Heartbeat(store, job.trained, number, stop.request)
    # half of the time for waiting, so that a beat that hangs leaves as much for saying it
    stop.last_word = lambda: heartbeat.end("interrupted", wait_seconds=LAST_WORD_SECONDS / 2)
    heartbeat.start()
    taken_unix_seconds = time.time()
    try:
        stored = find_newest_intact(store, job.trained, job.scratch / CHECKPOINT)
        resume = None if stored is None else stored.ref
        _log.info(
            "attempt %d, %s", number, "from the start" if resume is None else f"from iteration {resume.iteration}"
        )
        assigned = job.with_assignment(Assignment(number, resume), None)
        files = check_inputs(assigned, store, ranks_here(Settings.from_environ(), job.config))
        if stored is not None:
            files[CHECKPOINT] = {name: str(path) for name, path in stored.paths.items()}
        stop.check()
        yield replace(assigned, files=files, taken_unix_seconds=taken_unix_seconds)
    except InterruptedWithProgress:
        heartbeat.end("interrupted")
        raise
    except BaseException:
        heartbeat.end("failed")
        raise
    heartbeat.end("done")


def _train(job: Job, settings: Settings, stop: StopRequest, store: ObjectStore) -> None:
    """Run the ranks of this machine: in this process for one CPU rank or under another launcher, else one process
    each.
    """
    if settings.world_size is not None or (job.config.layout.world_size == 1 and not job.config.gpus):
        from stagecoach_train.worker import Place, train_rank  # torch: only now is it clear that there is work

        place = Place() if settings.world_size is None else Place.of(settings, elastic=True)
        train_rank(job, place, stop, store)
        return
    stop.expendable = False
    folder = job.scratch / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    job.write(file)
    world = World.of(settings, job.config.layout.world_size, job.config.nodes)
    command = [sys.executable, "-m", "stagecoach_train.worker", "--job", str(file)]
    try:
        Launcher(command, world, folder, stop, threads_per_rank=job.config.threads_per_rank).run()
    finally:
        _keep_logs(folder, settings.artifacts_dir)


def _keep_logs(folder: Path, artifacts: Path | None) -> None:
    """Leave the logs of the ranks among the artifacts; never fails, as how the training ended is what matters."""
    if artifacts is None:
        return
    try:
        (artifacts / "logs").mkdir(parents=True, exist_ok=True)
        for log in sorted(folder.glob("rank-*.log")):
            shutil.copyfile(log, artifacts / "logs" / log.name)
    except OSError as error:
        _log.warning("logs of ranks are missing in %s: %s", artifacts, error)


def _hand_over(output: Output, store: ObjectStore) -> None:
    """Name the last and the best checkpoint, and the metrics, as the output; nothing is copied."""
    if read_manifest(store, output.prefix) is not None:
        return
    refs = {
        ref.iteration: ref for ref in committed_checkpoints(store, output.prefix)
    }  # ascending: the highest attempt stays
    if not refs:
        raise MissingInputError(f"{store.url.rstrip('/')}/{output.prefix}: the training ended without a checkpoint")
    last = max(refs)
    state = _adopt_checkpoint(output, store, refs[last])
    best = state.best_step(set(refs))
    if best is not None and best != last:
        _adopt_checkpoint(output, store, refs[best])
    for info in list(store.list(f"{output.prefix}metrics/")):
        digests = Digests()
        digests.update(store.get(info.key))
        output.adopt(info.key.removeprefix(output.prefix), digests.entry(info.key))
    output.summary.update(_summary(state, sorted(refs), last, best))


def _adopt_checkpoint(output: Output, store: ObjectStore, ref: CheckpointRef) -> TrainState:
    manifest = read_manifest(store, checkpoint_prefix(output.prefix, ref.iteration, ref.attempt))
    if manifest is None:
        raise MissingInputError(
            f"{output.prefix}: the checkpoint of iteration {ref.iteration} is gone; another attempt deleted it"
        )
    for name, entry in manifest.objects.items():
        output.adopt(f"iter_{ref.iteration:07d}/{name}", entry)
    return TrainState.from_json(manifest.summary)


def _summary(state: TrainState, iterations: list[int], last: int, best: int | None) -> dict[str, object]:
    values = state.to_json()
    first_step = min(state.heldout, default=None)
    return {
        "last": last,
        "best": best,
        "iterations": iterations,
        "first_loss": state.first_loss,
        "last_loss": state.last_loss,
        "heldout_first": None if first_step is None else values["heldout"][first_step],
        "heldout_last": values["heldout"].get(last),
        "heldout_best": None if best is None else values["heldout"][best],
        "steps": state.step,
        "tokens": state.tokens,
        "targets": state.targets,
        "train_seconds": round(state.train_seconds, 3),
        "tokens_per_second": round(state.tokens / state.train_seconds, 1) if state.train_seconds else None,
        "skipped_steps": state.skipped_steps,
        "memory": state.memory,
        "answers": state.answers.get(last, []),
    }
