"""Where everything lies in the store; no other module spells a path.

sources/models|tokenizers|datasets/<name>-<key>/    native/ shards/ packed/ trained/ exports/<name>-<key>/
    manifest.json            written last: its presence means complete
    try-1a2b3c4d/<object>    what one attempt at making this output wrote
    attempts/0001.json       (trained) who may write now; the highest number may
    heartbeat-0001.json      (trained) changes while that attempt lives
    iter_0000152/attempt-0001/rank-00000.safetensors, index.json, manifest.json
    metrics/attempt-0001-000001.jsonl
    curves/attempt-0001/tensorboard/.., wandb/..    for people, where the recipe asks for them; no manifest lists them
    latest_checkpointed_iteration.txt
runs/<run id>/plan.json, <task>/0001.json, finished/0001.json
runs/<run id>/logs/<task>/0001-000001.txt    what the attempt with that "started" record wrote, in chunks
releases/<name>/0001.json
pushes/<digest of Hub, repository, branch>/0001.json
"""

from __future__ import annotations

import re
import secrets

from stagecoach.errors import ConfigError

MANIFEST = "manifest.json"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9](?:[a-z0-9-]{0,60}[a-z0-9])?")


def validate_name(name: str, what: str) -> str:
    """Return ``name`` if it can be part of a key in any store and of a Kubernetes label, else refuse it.

    Raises:
        ConfigError: Not 1 to 63 of ``a-z 0-9 . _ -`` with a letter or digit at both ends, or ``..`` inside.
    """
    if not is_name(name):
        raise ConfigError(
            f"{what}: expected 1 to 63 characters of a-z, 0-9, '.', '_', '-' that begin and end with a letter or digit"
            f" and hold no '..', got {name[:80]!r}"
        )
    return name


def is_name(name: str) -> bool:
    """Say whether ``validate_name`` takes it."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def validate_run_id(run_id: str) -> str:
    """Return ``run_id`` if it begins with a UTC time and can be part of a key, else refuse it.

    Raises:
        ConfigError: Not of the form ``20261125T013000Z-some-name``.
    """
    if not is_run_id(run_id):
        raise ConfigError(f"run id: expected the form 20261125T013000Z-some-name (a-z, 0-9, '-'), got {run_id[:120]!r}")
    return run_id


def is_run_id(name: str) -> bool:
    """Say whether ``name`` has the form of a run id."""
    return _RUN_ID.fullmatch(name) is not None


def output_prefix(kind: str, name: str, key: str) -> str:
    """Return the folder of one output, with its final slash: ``packed/demo-chat-3f2a.../``."""
    return f"{kind}/{name}-{key}/"


def manifest_key(prefix: str) -> str:
    """Return the key of the manifest whose presence makes the output under ``prefix`` complete."""
    return f"{prefix}{MANIFEST}"


def new_try_prefix(prefix: str) -> str:
    """Return a fresh folder for the objects of one try, so that two tries never mix."""
    return f"{prefix}try-{secrets.token_hex(4)}/"


def plan_key(run_id: str) -> str:
    """Return the key of a run's plan."""
    return f"runs/{run_id}/plan.json"


def task_record_prefix(run_id: str, task: str) -> str:
    """Return the folder of one task's numbered records in one run."""
    return f"runs/{run_id}/{task}/"


def logs_prefix(run_id: str) -> str:
    """Return the folder of the logs of one run's tasks."""
    return f"runs/{run_id}/logs/"


def log_key(run_id: str, task: str, number: int, chunk: int) -> str:
    """Return the key of one chunk of what an attempt wrote; ``number`` is that of its "started" record."""
    return f"{logs_prefix(run_id)}{task}/{number:04d}-{chunk:06d}.txt"


def finished_prefix(run_id: str) -> str:
    """Return the folder of one run's numbered finish records."""
    return f"runs/{run_id}/finished/"


def release_prefix(name: str) -> str:
    """Return the folder of the numbered promotions of one named model."""
    return f"releases/{name}/"


def push_prefix(branch_digest: str) -> str:
    """Return the folder of the numbered pushes to one branch of a repository."""
    return f"pushes/{branch_digest}/"


def numbered(prefix: str, number: int) -> str:
    """Return the key of the record with that number: ``runs/../pack/0003.json``."""
    return f"{prefix}{number:04d}.json"


def attempts_prefix(trained: str) -> str:
    """Return the folder of the fencing records of one training."""
    return f"{trained}attempts/"


def heartbeat_key(trained: str, attempt: int) -> str:
    """Return the key that changes while that attempt of the training lives."""
    return f"{trained}heartbeat-{attempt:04d}.json"


def checkpoint_prefix(trained: str, iteration: int, attempt: int) -> str:
    """Return the folder of one checkpoint: ``trained/../iter_0000152/attempt-0001/``."""
    return f"{trained}iter_{iteration:07d}/attempt-{attempt:04d}/"


def metrics_key(trained: str, attempt: int, chunk: int) -> str:
    """Return the key of one chunk of an attempt's metrics."""
    return f"{trained}metrics/attempt-{attempt:04d}-{chunk:06d}.jsonl"


def curves_prefix(trained: str, attempt: int) -> str:
    """Return the folder of what TensorBoard and W&B wrote in one attempt."""
    return f"{trained}curves/attempt-{attempt:04d}/"


def tracker_key(trained: str) -> str:
    """Return the key of the convenience file that holds the newest committed iteration as text."""
    return f"{trained}latest_checkpointed_iteration.txt"
