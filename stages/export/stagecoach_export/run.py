"""The export stage: a checkpoint of any layout becomes a Hub directory that transformers, vLLM and llama.cpp
load.

Weights are read by rectangle and written one tensor at a time. Everything else comes from the small files of
``native`` and ``tokenizer``, so the base model's own weights may be gone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagecoach.formats.hf_model import (
    CONFIG_JSON,
    GENERATION_CONFIG_JSON,
    HUB_METADATA,
    WEIGHTS_INDEX,
    hub_weight_files,
    write_json,
)
from stagecoach.formats.native import MODEL_JSON, NativeModel
from stagecoach.formats.tensor_file import TensorToWrite, write_tensor_file
from stagecoach.outputs import Input, Output
from stagecoach.pushes import push_once, push_records
from stagecoach.recipe.export import ExportConfig, PushConfig
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach_export.checkpoints import Chosen, choose
from stagecoach_export.configs import generation_config, model_config
from stagecoach_export.model_card import model_card
from stagecoach_export.promotion import offer
from stagecoach_export.tokenizer_check import check_tokenizer
from stagecoach_export.weights import HUB_DTYPES, bytes_read, hub_weights

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer.model",
)


def run(config: ExportConfig, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    """Write the Hub directory.

    Args:
        config: The recipe's export section.
        inputs: ``trained``, ``native``, ``tokenizer`` and ``packed``.
        output: Gets the directory's files.
        store: Not used beyond inputs and output.

    Raises:
        MissingInputError: The training has no such iteration.
        DataError: Tokenizer, model and training do not fit each other, or a weight is not finite.
    """
    native = inputs["native"]
    model = NativeModel.from_bytes(native.read_bytes(MODEL_JSON), f"{native.prefix}{MODEL_JSON}")
    chosen = choose(
        config.iteration,
        inputs["trained"],
        native,
        model,
        output.scratch / "checkpoint",
        lambda reader: bytes_read(reader, model.spec, config.dtype),
    )
    special = check_tokenizer(inputs["tokenizer"], model, inputs.get("packed"))
    _write_weights(config, chosen, model, output)
    hub_dtype = HUB_DTYPES[config.dtype][1]
    output.write_bytes(CONFIG_JSON, write_json(model_config(model.base_config, model.spec, special, hub_dtype)))
    generation = generation_config(model.base_generation_config, model.base_config, special)
    output.write_bytes(GENERATION_CONFIG_JSON, write_json(generation))
    for name in inputs["tokenizer"].names():
        if name in TOKENIZER_FILES:
            output.write_bytes(name, inputs["tokenizer"].read_bytes(name))
    output.write_bytes("README.md", model_card(config, inputs, model, chosen).encode())
    output.summary.update(
        {
            "iteration": chosen.iteration,
            "attempt": chosen.attempt,
            "dtype": config.dtype,
            "parameters": model.spec.num_parameters,
            "vocab_size": model.spec.vocab_size,
            "eos_token_ids": generation.get("eos_token_id", []),
        }
    )


def finish(config: ExportConfig, exported: Input, store: ObjectStore) -> None:
    """Offer the finished export as a release and push it, as the recipe asks, unless records say that it was done;
    the export stays as it is.

    Args:
        config: The recipe's export section.
        exported: The committed export.
        store: Gets the records: of the release under ``releases/``, of the push under ``pushes/``.

    Raises:
        ConfigError: The repository cannot be written to.
        UnavailableError: The Hub does not answer; a retry goes on.
    """
    if config.release is not None:
        scratch = Settings.from_environ().scratch_dir
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="release-", dir=scratch) as folder:
            offer(config, config.release, exported, store, Path(folder))
    wanted = config.push
    if wanted is None:
        return
    settings = Settings.from_environ()
    push_once(
        store,
        push_records(wanted, settings),
        exported.prefix,
        lambda: _push(wanted, exported, settings),
    )


def _push(config: PushConfig, exported: Input, settings: Settings) -> dict[str, Any]:
    from stagecoach_export.hub import push  # huggingface_hub is slow to import, and most exports are not pushed

    note = f"Stagecoach: {exported.manifest.name}, iteration {exported.summary.get('iteration')}"
    return {**asdict(push(config, exported, settings, note)), "pushed_unix_seconds": round(time.time(), 3)}


def _write_weights(config: ExportConfig, chosen: Chosen, model: NativeModel, output: Output) -> None:
    total = done = 0

    def on_part(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        output.progress(done, total, "weights")

    tensors: list[TensorToWrite] = hub_weights(chosen.reader, model.spec, config.dtype, on_part)
    total = sum(tensor.size_bytes for tensor in tensors)
    files, index = hub_weight_files(tensors, config.max_file_size_bytes)
    for name, mine in files.items():
        with output.create(name) as stream:
            write_tensor_file(stream, mine, HUB_METADATA)
    if index is not None:
        output.write_bytes(WEIGHTS_INDEX, index)
