"""The export stage: Hub names and numbers, configs, which iteration, and what it needs to be there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.errors import CorruptObjectError, DataError, MissingInputError
from stagecoach.formats.packed import FORMAT, FORMAT_VERSION
from stagecoach.formats.tensor_file import BFLOAT16, TensorFile
from stagecoach.outputs import Input, Output, open_input
from stagecoach.parallel.slicing import RankLayout
from stagecoach.storage.memory import MemoryStore
from tests.counting_store import counting_store
from tests.tiny_models import CONFIGS, Pipeline, hub_arrays, hub_directory, tensor_file_bytes, tokenizer_directory

MISTRAL = CONFIGS["mistral"]


class Made:
    """A model that was converted and "trained" for three steps that changed nothing."""

    def __init__(self, tmp_path: Path, config: dict[str, Any] = MISTRAL, **options: Any) -> None:
        """Run convert; make a checkpoint."""
        self.pipeline = Pipeline(options.get("store") or MemoryStore(), tmp_path)
        files = hub_directory(config, options.get("dtype", "F32"))
        files |= options.get("more_files", {})
        model = self.pipeline.finish("sources/models/m-1/", files)
        self.tokenizer = self.pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
        self.native = self.pipeline.convert(model, self.tokenizer)
        layout = options.get("layout", RankLayout(2, 3))
        self.trained = self.pipeline.trained(self.native, layout, options.get("masters", "fp32"))

    def export(self, **config: Any) -> Input:
        """Run export."""
        return self.pipeline.export(self.trained, self.native, self.tokenizer, **config)


def _tensors(exported: Input) -> dict[str, Any]:
    opened = [TensorFile.open(exported.path(name)) for name in exported.names() if name.endswith(".safetensors")]
    return {name: file.tensor(name) for file in opened for name in file.names()}


def _json(exported: Input, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(exported.read_bytes(name))
    return content


class TestNumbers:
    @pytest.mark.parametrize("family", CONFIGS)
    @pytest.mark.parametrize("masters", ["fp32", "split"])
    def test_fp32_is_the_source_bit_for_bit(self, tmp_path: Path, family: str, masters: str) -> None:
        made = Made(tmp_path, CONFIGS[family], masters=masters)
        found, source = _tensors(made.export(dtype="fp32")), hub_arrays(CONFIGS[family])
        assert found.keys() == source.keys()
        assert all(np.array_equal(found[name][: len(array)], array) for name, array in source.items())

    def test_bf16_of_fp32_weights_is_rounded_to_even(self, tmp_path: Path) -> None:
        found = _tensors(Made(tmp_path).export())["model.norm.weight"]
        assert np.array_equal(found, hub_arrays(MISTRAL)["model.norm.weight"].astype(BFLOAT16))

    def test_bf16_weights_are_exported_as_they_were_trained(self, tmp_path: Path) -> None:
        source = hub_arrays(MISTRAL)
        source["model.norm.weight"][:] = (
            1.00390625  # a tie: the engine's weight is 1.0078125, rounding to even says 1.0
        )
        made = Made(tmp_path, masters="split", more_files=_weights(source))
        assert set(_tensors(made.export())["model.norm.weight"].tolist()) == {1.0078125}

    def test_no_padding_row_is_exported(self, tmp_path: Path) -> None:
        assert _tensors(Made(tmp_path).export())["lm_head.weight"].shape == (322, 32)

    def test_small_files_get_an_index(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        exported = made.export(max_file_size_bytes=30_000)
        weight_map = _json(exported, "model.safetensors.index.json")["weight_map"]
        sizes = [exported.entry(name).size_bytes for name in set(weight_map.values())]
        assert len(sizes) > 2
        assert max(sizes) < 30_000 + 4096  # the header comes on top
        assert weight_map.keys() == hub_arrays(MISTRAL).keys()

    def test_the_same_bytes_twice(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        digests = [
            {name: entry.sha256 for name, entry in made.export(prefix=prefix).manifest.objects.items()}
            for prefix in ("exports/a-1/", "exports/b-1/")
        ]
        assert digests[0] == digests[1]

    def test_any_layout_gives_the_same_bytes(self, tmp_path: Path) -> None:
        one, other = (
            Made(tmp_path / str(layout), layout=layout).export().read_bytes("model.safetensors")
            for layout in (RankLayout(1, 1), RankLayout(2, 2))
        )
        assert one == other

    def test_a_weight_that_is_not_finite_is_named(self, tmp_path: Path) -> None:
        source = hub_arrays(MISTRAL)
        source["model.layers.1.mlp.gate_proj.weight"][0, 0] = 3.4e38
        made = Made(tmp_path, more_files=_weights(source))
        with pytest.raises(DataError, match=r"layers\.1\.mlp\.gate_proj\.weight: 3\.4e\+38 at \[0, 0\] does not fit"):
            made.export(dtype="fp16")

    def test_a_training_that_diverged_is_told_to_take_another_iteration(self, tmp_path: Path) -> None:
        source = hub_arrays(MISTRAL)
        source["model.norm.weight"][3] = np.nan
        made = Made(tmp_path)
        model = made.pipeline.finish("sources/models/m-2/", {**hub_directory(MISTRAL), **_weights(source)})
        diverged = made.pipeline.convert(model, made.tokenizer, "native/m-2/", allow_non_finite=True)
        made.trained = made.pipeline.trained(diverged, RankLayout(2, 1), prefix="trained/m-2/")
        with pytest.raises(
            DataError, match=r"model\.norm\.weight: .* got nan at \[3\]; choose another export\.iteration"
        ):
            made.export()
        assert list(made.pipeline.store.list("exports/")) == []


class TestConfigs:
    def test_config_json_is_the_bases_with_our_changes_only(self, tmp_path: Path) -> None:
        base = {**MISTRAL, "something_new": {"x": 1}, "_name_or_path": "/home/me"}
        written = _json(Made(tmp_path, base).export(), "config.json")
        expected = {**base, "vocab_size": 322, "eos_token_id": 321, "pad_token_id": 0}
        expected |= {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
        del expected["_name_or_path"]
        assert written == expected

    @pytest.mark.parametrize(
        "names",
        [
            {"model_type": "mistral"},
            {"architectures": ["MistralForCausalLM"]},
            {"model_type": "mistral", "architectures": ["Old"]},
        ],
    )
    def test_family_and_class_are_always_said(self, tmp_path: Path, names: dict[str, Any]) -> None:
        base = {key: value for key, value in MISTRAL.items() if key not in ("model_type", "architectures")} | names
        written = _json(Made(tmp_path, base).export(), "config.json")
        assert (written["model_type"], written["architectures"]) == ("mistral", ["MistralForCausalLM"])

    def test_generation_stops_at_both_ends(self, tmp_path: Path) -> None:
        base = {"generation_config.json": b'{"eos_token_id": [2, 5], "temperature": 0.6, "_from_model_config": true}'}
        written = _json(Made(tmp_path, more_files=base).export(), "generation_config.json")
        assert written == {"eos_token_id": [321, 2, 5], "temperature": 0.6, "bos_token_id": 1, "pad_token_id": 0}

    def test_a_pad_that_is_a_stop_token_is_left_out(self, tmp_path: Path) -> None:
        base = {"generation_config.json": b'{"eos_token_id": 0, "pad_token_id": 0}'}
        assert "pad_token_id" not in _json(Made(tmp_path, more_files=base).export(), "generation_config.json")

    def test_tokenizer_files_are_copied(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        exported = made.export()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert exported.read_bytes(name) == made.tokenizer.read_bytes(name)

    def test_the_base_weights_are_not_needed(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        gone = [info.key for info in made.pipeline.store.list("sources/models/")]
        gone += [made.native.entry("model.safetensors").path]
        made.pipeline.store.delete(gone)
        assert "model.safetensors" in made.export().names()

    def test_another_tokenizer_is_refused(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        larger = made.pipeline.finish("sources/tokenizers/m-2/", tokenizer_directory(330))
        with pytest.raises(DataError, match="expected ids below the model's 322 rows, got 331"):
            made.pipeline.export(made.trained, made.native, larger)
        moved = made.pipeline.finish("sources/tokenizers/m-3/", tokenizer_directory(318))
        with pytest.raises(DataError, match=r"expected '<\|im_end\|>' at 321, got 319"):
            made.pipeline.export(made.trained, made.native, moved)


class TestPackedWith:
    """The packs name the tokenizer and the template that they were made with."""

    @staticmethod
    def _packed(made: Made, **changes: Any) -> Input:
        config = json.loads(made.tokenizer.read_bytes("tokenizer_config.json"))
        description = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tokenizer_sha256": hashlib.sha256(made.tokenizer.read_bytes("tokenizer.json")).hexdigest(),
            "chat_template_sha256": hashlib.sha256(config["chat_template"].encode()).hexdigest(),
            **changes,
        }
        summary = {"num_packs": 1234, "sources": {"mine": 77}, "bos_id": 1}
        return made.pipeline.finish("packed/m-1/", {"packed.json": json.dumps(description).encode()}, summary=summary)

    def test_the_same_tokenizer_is_shipped_and_counted_in_the_card(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        card = made.export(packed=self._packed(made)).read_bytes("README.md").decode()
        assert "| conversations from mine | 77 |\n| packs | 1,234 |\n" in card

    @pytest.mark.parametrize(
        ("name", "what"),
        [("tokenizer_sha256", "tokenizer.json"), ("chat_template_sha256", r"chat template \(BOS rule")],
    )
    def test_another_one_is_refused(self, tmp_path: Path, name: str, what: str) -> None:
        made = Made(tmp_path)
        with pytest.raises(DataError, match=f"expected the {what}.* that packed/m-1/ was packed with"):
            made.export(packed=self._packed(made, **{name: "0" * 64}))


class TestIteration:
    def test_last_is_recorded(self, tmp_path: Path) -> None:
        summary = Made(tmp_path).export().summary
        assert (summary["iteration"], summary["attempt"], summary["eos_token_ids"]) == (3, 1, [321, 2])

    def test_best_needs_a_held_out_loss(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match=r"a best iteration \(no held-out loss was recorded\), it keeps 3"):
            Made(tmp_path).export(iteration="best")

    def test_best_is_the_recorded_one(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        self._checkpoint(made, 1)
        output = Output(made.pipeline.store, "trained/m-2/", tmp_path / "out")
        for name in made.trained.names():
            output.adopt(name, made.trained.entry(name))
        for info in made.pipeline.store.list("trained/m-1/iter_0000002/"):
            made.pipeline.store.put(info.key.replace("m-1", "m-2"), made.pipeline.store.get(info.key))
        output.summary.update({"last": 3, "best": 2, "iterations": [2, 3]})
        output.commit(task="t", key="1", name="tiny", output_version=1)
        made.trained = open_input(made.pipeline.store, "trained/m-2/", tmp_path / "in")
        assert made.export(iteration="best").summary["iteration"] == 2
        assert made.export(prefix="exports/m-2/").summary["iteration"] == 3

    def test_a_checkpoint_half_uploaded_does_not_count(self, tmp_path: Path) -> None:
        """Ranks upload first, the manifest comes last: without it an attempt is not there, however much of it lies there."""
        made = Made(tmp_path)
        self._checkpoint(made, 1)
        for info in list(made.pipeline.store.list("trained/m-1/iter_0000002/attempt-0001/")):
            if not info.key.endswith("manifest.json"):
                key = info.key.replace("attempt-0001", "attempt-0002")
                made.pipeline.store.put(key, made.pipeline.store.get(info.key))
        assert made.export(iteration=2).summary["attempt"] == 1
        made.pipeline.store.delete(["trained/m-1/iter_0000002/attempt-0001/manifest.json"])
        with pytest.raises(MissingInputError, match="expected iteration 2, it keeps 3"):
            made.export(iteration=2, prefix="exports/m-2/")

    @pytest.mark.parametrize("change", [lambda data: data[:-8], lambda data: data[:-1] + b"x"], ids=["cut", "changed"])
    def test_a_rank_whose_bytes_are_not_those_recorded_is_refused(
        self, tmp_path: Path, change: Callable[[bytes], bytes]
    ) -> None:
        made = Made(tmp_path)
        key = made.trained.entry("iter_0000003/rank-00001.safetensors").path
        made.pipeline.store.put(key, change(made.pipeline.store.get(key)))
        with pytest.raises(CorruptObjectError, match=r"rank-00001\.safetensors: expected \d+ bytes with sha256"):
            made.export()
        assert list(made.pipeline.store.list("exports/m-1/manifest.json")) == []

    def test_one_that_is_not_kept_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match="expected iteration 2, it keeps 3"):
            Made(tmp_path).export(iteration=2)

    def test_zero_is_the_untrained_model(self, tmp_path: Path) -> None:
        found = _tensors(Made(tmp_path).export(iteration=0, dtype="fp32"))
        assert np.array_equal(found["model.norm.weight"], hub_arrays(MISTRAL)["model.norm.weight"])

    def test_one_outside_the_manifest_is_found_in_the_store(self, tmp_path: Path) -> None:
        """A finished training names its last and best checkpoint; the others that it keeps lie beside."""
        made = Made(tmp_path)
        for attempt in (1, 2):
            self._checkpoint(made, attempt)
        summary = made.export(iteration=2).summary
        assert (summary["iteration"], summary["attempt"]) == (2, 2)

    def test_one_checkpoint_of_a_training_that_still_runs(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        made.trained = self._checkpoint(made, 4)
        summary = made.export().summary
        assert (summary["iteration"], summary["attempt"]) == (2, 4)

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        other = Made(tmp_path / "other", {**MISTRAL, "rope_theta": 5e5})
        with pytest.raises(DataError, match=r"got rope_theta 10000\.0 instead of 500000\.0"):
            made.pipeline.export(other.trained, made.native, made.tokenizer)

    @staticmethod
    def _checkpoint(made: Made, attempt: int) -> Input:
        files = {
            name: made.trained.read_bytes(f"iter_0000003/{name}") for name in ("index.json", *_ranks(made.trained))
        }
        return made.pipeline.finish(f"trained/m-1/iter_0000002/attempt-{attempt:04d}/", files, in_place=True)


class TestWhatIsFetched:
    """Two thirds of a checkpoint are moments of the optimizer, which nobody exports."""

    @pytest.mark.parametrize("masters", ["fp32", "split"])
    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    def test_no_more_than_the_weights_and_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, masters: str
    ) -> None:
        expected = Made(tmp_path / "a", masters=masters).export(dtype=dtype)
        store = counting_store(monkeypatch, 512)
        made = Made(tmp_path / "b", masters=masters, store=store)
        store.num_bytes = 0
        found = made.export(dtype=dtype)
        sizes = {name: made.trained.entry(f"iter_0000003/{name}").size_bytes for name in _ranks(made.trained)}
        read = sum(size_bytes for _, size_bytes in store.ranges)
        weights = made.native.entry("model.safetensors").size_bytes
        # this one has one moment, in fp32; a block at each end of a run of weights holds some of it
        assert weights / 2 <= read < sum(sizes.values()) - 0.8 * weights
        assert not [key for key in store.files if "/rank-" in key]
        assert _digests(found) == _digests(expected)


class TestModelCard:
    def test_it_says_base_licence_and_step(self, tmp_path: Path) -> None:
        card = (
            Made(tmp_path, more_files={"README.md": b"---\nlicense: mit\n---\n"})
            .export()
            .read_bytes("README.md")
            .decode()
        )
        assert card.startswith('---\nlicense: "mit"\nlibrary_name: "transformers"\n')
        assert "| licence of the base model | mit |" in card
        assert "| step | 3 |" in card
        assert "vllm serve" in card


def _digests(exported: Input) -> dict[str, str]:
    return {name: exported.entry(name).sha256 for name in exported.names()}


def _ranks(trained: Input) -> list[str]:
    return [name.removeprefix("iter_0000003/") for name in trained.names() if name.endswith(".safetensors")]


def _weights(arrays: dict[str, Any]) -> dict[str, bytes]:
    return {"model.safetensors": tensor_file_bytes(arrays)}
