"""Checkpoints of the original system (Megatron-LLM) as a Hub model: TP and PP merged, rotary rows and GLU order
turned back.

    latest_checkpointed_iteration.txt                 "release" or a number
    release/mp_rank_00/model_optim_rng.pt             TP rank 00, one pipeline stage
    iter_0000152/mp_rank_03_001/model_rng.pt          TP rank 03, pipeline stage 001

What differs from the Hub: query and key rows of a head are interleaved (2i, 2i+1 is a rotary pair; on the Hub i, i +
d/2), and the MLP's first matrix is [up; gate]. Query, key and value are fused by key/value group as in the native form.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.architectures.hf_names import hub_tensors
from stagecoach.architectures.registry import FAMILIES, ModelSpec, native_tensors
from stagecoach.errors import DataError, shown
from stagecoach.formats.tensor_file import Array
from stagecoach.source_files import TRACKER, OriginalCheckpoint
from stagecoach_convert.accounting import listed
from stagecoach_convert.pickle_reader import Namespace, PickledTensor, TorchFile
from stagecoach_convert.torch_source import flat_tensors

_LAYER = re.compile(r"(?:transformer|encoder)\.layers\.(\d+)\.(.+)")
_RENAMED = {"self_attention.": "attention."}
_MERGED_AT_ONCE = 4


class MegatronSource:
    """The merged tensors of one checkpoint, by Hub name."""

    def __init__(
        self,
        checkpoint: OriginalCheckpoint,
        path_of: Callable[[str], Path],
        origin: str,
        num_tokens: int,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Open every rank's file.

        Args:
            checkpoint: Names of its files.
            path_of: File name -> local path.
            origin: Says in messages what was read.
            num_tokens: Ids of the tokenizer; rows beyond them are the original's padding and are cut off.
            config: A config.json that lies beside; None makes one from the arguments that the checkpoint stores.

        Raises:
            DataError: A rank is missing, its file is not one of the original system, or its tensors are not those that
                the arguments describe; all are named.
        """
        self.origin = origin
        self._ranks = _open_ranks(checkpoint, path_of, origin)
        self._tensors = {at: _normalised(file) for at, file in self._ranks.items()}
        self._tp = 1 + max(tp for tp, _ in self._ranks)
        self._pp = 1 + max(pp for _, pp in self._ranks)
        if len(self._ranks) != self._tp * self._pp:
            raise DataError(
                f"{origin}: expected {self._tp} x {self._pp} rank files, got {len(self._ranks)}; one is missing"
            )
        rows = sum(
            part.shape[0] for tp in range(self._tp) if (part := self._tensors[tp, 0].get(_EMBEDDING)) and part.shape
        )
        rows = rows or num_tokens  # without any, all that is missing is named below
        self.config: dict[str, Any] = {
            **(self._config_of_arguments() if config is None else config),
            "vocab_size": min(rows, num_tokens),
        }
        self._spec = ModelSpec.from_hf_config(self.config)
        if self._spec.num_layers % self._pp:
            raise DataError(
                f"{origin}: expected layers that divide by {self._pp} pipeline stages, got {self._spec.num_layers}"
            )
        if self._spec.qkv_bias or self._spec.qk_norm:
            raise DataError(
                f"{origin}: expected a Llama or Mistral model, as the original system trains no others, its"
                f" config.json says {self._spec.family}"
            )
        self._shapes = {tensor.name: tensor.shape for tensor in native_tensors(self._spec)}
        self._account_for(rows)
        self._hub = {tensor.name: tensor for tensor in hub_tensors(self._spec)}
        self._merged: OrderedDict[str, Array] = OrderedDict()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape, by Hub name; the last stage's copy of a tied embedding is the head."""
        shapes = {name: tensor.shape for name, tensor in self._hub.items()}
        if self._spec.tied_embeddings and _TIED_COPY in self._tensors[0, self._pp - 1]:
            shapes[self._head] = self._shapes["embedding.weight"]
        return shapes

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return one tensor's dtype."""
        _, part, stage = self._place(self._hub[name].native)
        return self._tensors[0, stage][part].dtype

    def tensor(self, name: str) -> Array:
        """Return one tensor, merged."""
        if name not in self._hub:
            return self._native("head.weight")
        hub = self._hub[name]
        native = self._native(hub.native)
        rows = [native[start:end] for start, end in hub.native_rows]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    @property
    def _head(self) -> str:
        return FAMILIES[self._spec.family].tensors["head.weight"][0]

    def _account_for(self, padded_vocab_size: int) -> None:
        """Make sure that every rank's file holds what its place in the model asks for, and nothing else."""
        missing, unknown, different = [], [], []
        for (tp, stage), found in self._tensors.items():
            wanted = self._rank_shapes(stage, padded_vocab_size)
            where = f" of tensor rank {tp}, stage {stage}"
            missing += [part + where for part in wanted.keys() - found.keys() - {_TIED_COPY}]
            unknown += [part + where for part in found.keys() - wanted.keys()]
            for part in wanted.keys() & found.keys():
                is_as_on_rank_0 = found[part].dtype == self._tensors[0, stage].get(part, found[part]).dtype
                if found[part].shape != wanted[part] or not is_as_on_rank_0:
                    got = f"{found[part].dtype} {found[part].shape}"
                    different.append(f"{part}{where} (expected {wanted[part]}, got {got})")
        problems = [listed("missing", missing), listed("unknown", unknown), listed("of another form", different)]
        if any(problems):
            raise DataError(
                f"{self.origin}: the checkpoint's arguments or config.json and its tensors contradict each other:"
                f" {'; '.join(problem for problem in problems if problem)}"
            )

    def _rank_shapes(self, stage: int, padded_vocab_size: int) -> dict[str, tuple[int, ...]]:
        """Return what a rank of a stage holds: name in the original -> its part's shape."""
        shapes = dict(self._shapes)
        if self._spec.tied_embeddings and self._pp > 1:
            shapes["head.weight"] = shapes["embedding.weight"]
        found: dict[str, tuple[int, ...]] = {}
        for native, shape in shapes.items():
            kind, part, at = self._place(native)
            if at != stage:
                continue
            rows = padded_vocab_size if kind == "rows" else shape[0]
            if kind == "columns":
                found[part] = (rows, shape[1] // self._tp)
            else:
                found[part] = (rows if kind == "whole" else rows // self._tp, *shape[1:])
        return found

    def _native(self, name: str) -> Array:
        """Return a tensor in the native layout, from all tensor ranks; the last few are kept, as q, k, v follow each
        other.
        """
        if name not in self._merged:
            self._merged[name] = self._merge(name)
            if len(self._merged) > _MERGED_AT_ONCE:
                self._merged.popitem(last=False)
        return self._merged[name]

    def _merge(self, name: str) -> Array:
        kind, part, stage = self._place(name)
        cut = [self._ranks[tp, stage].array(self._tensors[tp, stage][part]) for tp in range(self._tp)]
        match kind:
            case "rows":
                return np.concatenate(cut)[: self._spec.vocab_size]
            case "columns":
                return np.concatenate(cut, axis=1)
            case "gate_up":
                halves = [np.split(rank, 2) for rank in cut]
                return np.concatenate([gate for _, gate in halves] + [up for up, _ in halves])
            case "qkv":
                return half_split(np.concatenate(cut), self._spec)
            case _:
                if any(not np.array_equal(cut[0], other) for other in cut[1:]):
                    raise DataError(f"{self.origin}: {part}: expected the same numbers on every tensor rank")
                return cut[0]

    def _place(self, native: str) -> tuple[str, str, int]:
        """Return how a native tensor is cut, its name in the original, and its pipeline stage."""
        if native in _ENDS:
            kind, part = _ENDS[native]
            if native == "head.weight" and self._spec.tied_embeddings:
                part = _TIED_COPY
            return kind, part, 0 if native == "embedding.weight" else self._pp - 1
        _, layer, rest = native.split(".", 2)
        per_stage = self._spec.num_layers // self._pp
        stage, local = divmod(int(layer), per_stage)
        kind, part = _IN_LAYER[rest]
        return kind, f"layers.{local}.{part}", stage

    def _config_of_arguments(self) -> dict[str, Any]:
        """Return the config.json that the stored arguments describe."""
        stored = self._ranks[0, 0].content.get("args")
        if not isinstance(stored, Namespace):
            raise DataError(
                f"{self.origin}: expected the arguments of the training under args, got {type(stored).__name__}; put the"
                " model's config.json beside it"
            )
        arguments = vars(stored)
        window = arguments.get("sliding_window_size")
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM" if window is None else "MistralForCausalLM"],
            "model_type": "llama" if window is None else "mistral",
            "hidden_act": "silu",
            "hidden_size": arguments.get("hidden_size"),
            "intermediate_size": arguments.get("ffn_hidden_size"),
            "num_hidden_layers": arguments.get("num_layers"),
            "num_attention_heads": arguments.get("num_attention_heads"),
            "num_key_value_heads": arguments.get("num_attention_heads_kv"),
            "max_position_embeddings": arguments.get("max_position_embeddings"),
            "rms_norm_eps": arguments.get("layernorm_epsilon", 1e-5),
            "rope_theta": arguments.get("rope_theta", 10_000.0),
            "tie_word_embeddings": bool(arguments.get("tie_embed_logits", False)),
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        if window is not None:
            config["sliding_window"] = window
        factor = arguments.get("rope_scaling_factor") or 1.0
        if factor != 1.0:
            config["rope_scaling"] = {"type": "linear", "factor": factor}
        return config


_EMBEDDING = "embedding.word_embeddings.weight"
#: A tied embedding once more, on the last of several pipeline stages.
_TIED_COPY = "word_embeddings_for_head.weight"
#: Native tensor -> how tensor ranks cut it, and its name in the original.
_ENDS = {
    "embedding.weight": ("rows", _EMBEDDING),
    "final_norm.weight": ("whole", "final_layernorm.weight"),
    "head.weight": ("rows", "lm_head"),
}
_IN_LAYER = {
    "attention_norm.weight": ("whole", "input_layernorm.weight"),
    "attention.qkv.weight": ("qkv", "attention.query_key_value.weight"),
    "attention.output.weight": ("columns", "attention.dense.weight"),
    "mlp_norm.weight": ("whole", "post_attention_layernorm.weight"),
    "mlp.gate_up.weight": ("gate_up", "mlp.dense_h_to_4h.weight"),
    "mlp.down.weight": ("columns", "mlp.dense_4h_to_h.weight"),
}


def half_split(qkv: Array, spec: ModelSpec) -> Array:
    """Turn interleaved rotary rows of every query and key head into the Hub's order; value rows stay.

    Args:
        qkv: Rows by key/value group: query heads, key head, value head.
        spec: The model's dimensions.
    """
    heads = qkv.reshape(spec.num_kv_heads, spec.queries_per_group + 2, spec.head_dim // 2, 2, qkv.shape[1])
    turned = heads[:, :-1].swapaxes(2, 3).reshape(spec.num_kv_heads, -1, qkv.shape[1])
    values = heads[:, -1:].reshape(spec.num_kv_heads, spec.head_dim, qkv.shape[1])
    return np.concatenate([turned, values], axis=1).reshape(qkv.shape)


def _open_ranks(
    checkpoint: OriginalCheckpoint, path_of: Callable[[str], Path], origin: str
) -> dict[tuple[int, int], TorchFile]:
    """Return (tensor rank, pipeline stage) -> file, where a tracker names this iteration or there is none."""
    if checkpoint.tracker is not None:
        text = path_of(checkpoint.tracker).read_text(encoding="utf-8", errors="replace").strip()
        wanted = text if text == "release" else f"iter_{text.lstrip('0').zfill(7)}" if text.isdecimal() else text
        if wanted != checkpoint.iteration:
            raise DataError(f"{origin}: {TRACKER} says {wanted[:40]!r}, of which there are no rank files")
    return {at: TorchFile(path_of(name)) for at, name in sorted(checkpoint.ranks.items())}


def _normalised(file: TorchFile) -> dict[str, PickledTensor]:
    """Return the tensors under the names that raw checkpoints use, whichever of the original's spellings they have."""
    if not isinstance(file.content, dict) or not isinstance(file.content.get("model"), dict):
        got = list(file.content) if isinstance(file.content, dict) else type(file.content).__name__
        raise DataError(
            f"{file.origin}: expected a dictionary with a model, as the original system saves, got {shown(got)}"
        )
    found: dict[str, PickledTensor] = {}
    for name, tensor in flat_tensors(file.content["model"], file.origin).items():
        part = name.removeprefix("language_model.")
        if match := _LAYER.fullmatch(part):
            part = f"layers.{match[1]}.{match[2]}"
            for old, new in _RENAMED.items():
                part = part.replace(old, new)
        part = part.removeprefix("transformer.").removeprefix("encoder.")
        part = "lm_head" if part == "lm_head.weight" else part
        if part in found:
            raise DataError(f"{file.origin}: {part[:120]}: expected once, found under two spellings of its name")
        found[part] = tensor
    return found
