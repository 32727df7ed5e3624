"""Tiny models of every family as Hub directories, and the stages run on them; what the model tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from stagecoach.architectures.hf_names import hub_tensors
from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.formats.casting import row_parts
from stagecoach.formats.checkpoint import CheckpointIndex, Kind, StoredPiece, piece_tensor_name, rank_file_name
from stagecoach.formats.masters import split_master
from stagecoach.formats.native import NativeModel, NativeReader
from stagecoach.formats.shards import SHARDS_JSON, Shards, shard_file_name, shards_as_pieces
from stagecoach.formats.tensor_file import DTYPES, Array, TensorToWrite, write_tensor_file
from stagecoach.manifest import Digests
from stagecoach.outputs import Input, Output, open_input
from stagecoach.parallel.slicing import RankLayout, local_rectangles
from stagecoach.paths import checkpoint_prefix
from stagecoach.random_bits import normal_parts
from stagecoach.recipe.convert import ConvertConfig
from stagecoach.recipe.export import ExportConfig
from stagecoach.recipe.shard import ShardConfig
from stagecoach.storage.base import ObjectStore
from stagecoach_convert.run import run as convert
from stagecoach_export.run import run as export
from stagecoach_shard.run import run as shard

VOCAB_SIZE = 320

_SHARED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
_LLAMA = {**_SHARED, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2": {**_LLAMA, "num_key_value_heads": 4, "rope_scaling": None},
    "codellama": {**_LLAMA, "rope_theta": 1_000_000, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-3": {
        **_LLAMA,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama-tied": {**_LLAMA, "tie_word_embeddings": True},
    "mistral": {
        **_SHARED,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 8,
        "tie_word_embeddings": False,
    },
    "mistral-v5-spelling": {
        **{key: value for key, value in _SHARED.items() if key != "torch_dtype"},
        "dtype": "float32",
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": None,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": False,
    },
    "qwen2": {
        **_SHARED,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        **_SHARED,
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
}


def spec_of(family: str, **changes: Any) -> ModelSpec:
    """Return the dimensions of one of ``CONFIGS``."""
    return ModelSpec.from_hf_config({**CONFIGS[family], **changes})


def hub_arrays(config: Mapping[str, Any], dtype: str = "F32") -> dict[str, Array]:
    """Return random weights by Hub name; norms lie around 1, so that a forgotten one shows."""
    spec = ModelSpec.from_hf_config(config)
    arrays: dict[str, Array] = {}
    for tensor in hub_tensors(spec):
        values = np.concatenate(list(normal_parts(7, tensor.name, tensor.shape)))
        scaled = 1 + 0.1 * values if "norm" in tensor.name else 0.2 * values
        arrays[tensor.name] = scaled.astype(np.float32).astype(DTYPES[dtype])
    return arrays


def tensor_file_bytes(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file with these arrays."""
    from io import BytesIO

    stream = BytesIO()
    tensors = [TensorToWrite(name, array.dtype, array.shape, lambda a=array: a) for name, array in arrays.items()]  # type: ignore[misc]
    write_tensor_file(stream, tensors, metadata)
    return stream.getvalue()


def hub_directory(config: Mapping[str, Any], dtype: str = "F32", num_files: int = 1) -> dict[str, bytes]:
    """Return the files of a Hub directory, by name."""
    arrays = hub_arrays(config, dtype)
    files = {"config.json": json.dumps(config).encode()}
    if num_files == 1:
        return {**files, "model.safetensors": tensor_file_bytes(arrays, {"format": "pt"})}
    weight_map = {
        name: f"model-{at % num_files + 1:05d}-of-{num_files:05d}.safetensors" for at, name in enumerate(arrays)
    }
    for file in set(weight_map.values()):
        files[file] = tensor_file_bytes({name: arrays[name] for name in arrays if weight_map[name] == file})
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def tokenizer_directory(vocab_size: int = VOCAB_SIZE, chatml_at: tuple[int, int] | None = None) -> dict[str, bytes]:
    """Return the files of a final tokenizer with ``vocab_size`` ids and the ChatML tokens behind them, or
    where told.
    """
    words = ["<unk>", "<s>", "</s>", *(f"w{at}" for at in range(3, vocab_size))]
    if chatml_at is not None:
        words[chatml_at[0]], words[chatml_at[1]] = "<|im_start|>", "<|im_end|>"
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "chat_template.jinja": str(config["chat_template"]).encode(),
    }


class Pipeline:
    """The three model stages on one store, each output under a prefix of its own."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        """Work on ``store``; ``scratch`` is any folder."""
        self.store = store
        self.scratch = scratch

    def finish(self, prefix: str, files: Mapping[str, bytes], *, in_place: bool = False, **fields: Any) -> Input:
        """Make a finished output of these files, as a stage would have; ``in_place`` puts them beside the
        manifest.
        """
        output = Output(self.store, prefix, self.scratch / "out")
        for name, data in files.items():
            if in_place:
                digests = Digests()
                digests.update(data)
                self.store.put(prefix + name, data)
                output.adopt(name, digests.entry(prefix + name))
            else:
                output.write_bytes(name, data)
        output.summary.update(fields.pop("summary", {}))
        return self._commit(output, **fields)

    def convert(self, model: Input, tokenizer: Input, prefix: str = "native/m-1/", **config: Any) -> Input:
        """Run the convert stage."""
        output = Output(self.store, prefix, self.scratch / "out")
        convert(ConvertConfig(**config), {"model": model, "tokenizer": tokenizer}, output, self.store)
        return self._commit(output)

    def shard(self, native: Input, tensor: int, pipeline: int, virtual: int = 1) -> Input:
        """Run the shard stage."""
        output = Output(self.store, f"shards/m-{tensor}-{pipeline}-{virtual}/", self.scratch / "out")
        config = ShardConfig(tensor_parallel=tensor, pipeline_parallel=pipeline, virtual_stages=virtual)
        shard(config, {"native": native}, output, self.store)
        return self._commit(output)

    def export(
        self,
        trained: Input,
        native: Input,
        tokenizer: Input,
        prefix: str = "exports/m-1/",
        packed: Input | None = None,
        **config: Any,
    ) -> Input:
        """Run the export stage."""
        output = Output(self.store, prefix, self.scratch / "out")
        inputs = {"trained": trained, "native": native, "tokenizer": tokenizer}
        if packed is not None:
            inputs["packed"] = packed
        export(ExportConfig(**config), inputs, output, self.store)
        return self._commit(output)

    def trained(self, native: Input, layout: RankLayout, masters: str = "fp32", prefix: str = "trained/m-1/") -> Input:
        """Make the output of a training of 3 steps on ``layout`` that changed no weight."""
        model = NativeModel.from_bytes(native.read_bytes("model.json"))
        arrays = {name: array.astype(np.float32) for name, array in native_arrays(native).items()}
        folder = checkpoint_prefix(prefix, 3, 1)
        checkpoint = self.finish(folder, checkpoint_files(model.spec, arrays, layout, masters), in_place=True)
        output = Output(self.store, prefix, self.scratch / "out")
        for name, entry in checkpoint.manifest.objects.items():
            output.adopt(f"iter_0000003/{name}", entry)
        output.summary.update({"last": 3, "best": None, "iterations": [3]})
        return self._commit(output)

    def checkpoint_of(self, shards: Input, prefix: str = "trained/m-1/") -> Input:
        """Take finished shards as the output of a training of 1 step; only an index is missing, which is made here."""
        found = Shards.from_bytes(shards.read_bytes(SHARDS_JSON))
        entries = shards_as_pieces(found.spec, found.layout, lambda tp, pp: f"rank-{tp:05d}-{pp:05d}.safetensors")
        index = CheckpointIndex.build(found.spec, entries).to_bytes()
        checkpoint = self.finish(checkpoint_prefix(prefix, 1, 1), {"index.json": index}, in_place=True)
        output = Output(self.store, prefix, self.scratch / "out")
        output.adopt("iter_0000001/index.json", checkpoint.entry("index.json"))
        for tp, pp in found.layout.ranks:
            entry = shards.entry(shard_file_name(found.layout, tp, pp))
            output.adopt(f"iter_0000001/rank-{tp:05d}-{pp:05d}.safetensors", entry)
        output.summary.update({"last": 1, "best": None, "iterations": [1]})
        return self._commit(output)

    def _commit(self, output: Output, **fields: Any) -> Input:
        output.commit(**{"task": "t", "key": "1", "name": "tiny", "output_version": 1, **fields})
        return open_input(self.store, output.prefix, self.scratch / "in")


def native_arrays(native: Input) -> dict[str, Array]:
    """Return every tensor of a native output."""
    model = NativeModel.from_bytes(native.read_bytes("model.json"))
    reader = NativeReader(model, native.path)
    return {tensor.name: reader.rectangle(tensor.name) for tensor in native_tensors(model.spec)}


def checkpoint_files(
    spec: ModelSpec, arrays: Mapping[str, Array], layout: RankLayout, masters: str = "fp32"
) -> dict[str, bytes]:
    """Return a checkpoint of these weights as ranks of ``layout`` would write it.

    Args:
        spec: Dimensions.
        arrays: fp32 weights by native name.
        layout: Of the ranks.
        masters: ``fp32``: fp32 weights; ``split``: bf16 weights and 16-bit remainders.
    """
    files: dict[str, bytes] = {}
    entries: list[tuple[str, Kind, StoredPiece]] = []
    taken: set[tuple[Any, ...]] = set()
    for rank, (tp_rank, pp_rank) in enumerate(layout.ranks):
        mine: dict[str, Array] = {}
        for tensor in local_rectangles(spec, layout, tp_rank, pp_rank):
            for piece in tensor.pieces:
                if (tensor.name, piece.rows, piece.cols) in taken:
                    continue
                taken.add((tensor.name, piece.rows, piece.cols))
                for kind, values in _kinds(cut(arrays[tensor.name], piece.rows, piece.cols), masters):
                    name = piece_tensor_name(tensor.name, kind, piece.rows, piece.cols)
                    mine[name] = values
                    stored = StoredPiece.whole(rank_file_name(rank), name, piece.rows, piece.cols)
                    entries.append((tensor.name, kind, stored))
        files[rank_file_name(rank)] = tensor_file_bytes(mine)
    files["index.json"] = CheckpointIndex.build(spec, entries, {"step": 3}).to_bytes()
    return files


def cut(array: Array, rows: tuple[int, int], cols: tuple[int, int] | None) -> Array:
    """Return a copy of a rectangle."""
    part = array[rows[0] : rows[1]]
    return np.array(part if cols is None else part[:, cols[0] : cols[1]])


def _kinds(values: Array, masters: str) -> Iterator[tuple[Kind, Array]]:
    if masters == "split":
        weight, remainder = split_master(values)
        yield "weight", weight
        yield "master_remainder", remainder
    else:
        yield "weight", np.concatenate(list(row_parts(values, DTYPES["F32"])))
    yield "exp_avg", np.zeros_like(values)
