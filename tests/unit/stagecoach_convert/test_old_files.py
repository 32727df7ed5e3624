"""Hub ``.bin`` files and checkpoints of the original system give the same native model as safetensors."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.outputs import Input
from stagecoach.source_files import TRACKER
from stagecoach.storage.memory import MemoryStore
from tests.tiny_models import CONFIGS, Pipeline, hub_arrays, hub_directory, native_arrays, tokenizer_directory
from tests.unit.stagecoach_convert.original_checkpoints import CONFIG, original_files, torch_bytes

torch = pytest.importorskip("torch")


def _state(config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    return {name: torch.from_numpy(array.copy()) for name, array in hub_arrays(config).items()}


def _convert(tmp_path: Path, files: dict[str, bytes], tokenizer: dict[str, bytes] | None = None) -> Input:
    pipeline = Pipeline(MemoryStore(), tmp_path)
    model = pipeline.finish("sources/models/m-1/", files)
    final = pipeline.finish("sources/tokenizers/m-1/", tokenizer or tokenizer_directory())
    return pipeline.convert(model, final)


def contains_itself() -> dict[str, Any]:
    content: dict[str, Any] = {"model.norm.weight": torch.zeros(32)}
    content["a"] = {"b": content}
    return content


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {"weight": torch.zeros(1)}
    for _ in range(depth):
        content = {"a": content}
    return content


def doubled(depth: int) -> dict[str, Any]:
    """Small in the file, 2^depth tensors when it is followed."""
    content: dict[str, Any] = {"weight": torch.zeros(1)}
    for _ in range(depth):
        content = {"a": content, "b": content}
    return content


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [torch.zeros(1)], "got list"),
    "a tensor": (lambda: torch.zeros(1), "got PickledTensor"),
    "text": (lambda: "model", "got str"),
    "nothing": (lambda: None, "got NoneType"),
    "contains itself": (contains_itself, r"one place each, .* under a\.b"),
    "deep": (lambda: nested(200), r"at most 32 deep, .* under a\.a"),
    "many from few": (lambda: doubled(30), "one place each"),
    "endless numbers as names": (
        lambda: {10**5000: torch.zeros(1), 10**5001: torch.zeros(1)},
        "different names, got 'a value of type int",
    ),
    "one name twice": (lambda: {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}, r"different names, got 'a\.b'"),
}
"""What a file of torch holds, and what is said."""


class TestBin:
    def test_one_file(self, tmp_path: Path) -> None:
        expected = _convert(tmp_path / "a", hub_directory(CONFIG)).read_bytes("model.safetensors")
        files = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": torch_bytes(_state())}
        assert _convert(tmp_path / "b", files).read_bytes("model.safetensors") == expected

    def test_several_files(self, tmp_path: Path) -> None:
        expected = _convert(tmp_path / "a", hub_directory(CONFIG)).read_bytes("model.safetensors")
        state = _state()
        weight_map = {name: f"pytorch_model-0000{1 + at % 2}-of-00002.bin" for at, name in enumerate(state)}
        files = {
            file: torch_bytes({name: tensor for name, tensor in state.items() if weight_map[name] == file})
            for file in set(weight_map.values())
        }
        files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": weight_map}).encode()
        files["config.json"] = json.dumps(CONFIG).encode()
        assert _convert(tmp_path / "b", files).read_bytes("model.safetensors") == expected
        with pytest.raises(DataError, match=r"names pytorch_model-00002-of-00002\.bin, which the directory does not"):
            _convert(tmp_path / "c", {name: data for name, data in files.items() if "00002-of" not in name})

    @pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
    def test_what_is_no_dictionary_of_tensors_is_refused(
        self, tmp_path: Path, content: Callable[[], Any], message: str
    ) -> None:
        files = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": torch_bytes(content())}
        with pytest.raises(DataError, match=f"pytorch_model.bin: expected .*{message}"):
            _convert(tmp_path, files)


_DENSE = "layers.1.attention.dense.weight"
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (
        lambda model: model["transformer"].pop(_DENSE),
        f"1 missing: {_DENSE} of tensor rank 1, stage 1",
    ),
    "unknown": (
        lambda model: model["transformer"].update({"layers.0.attention.dense.bias": torch.zeros(32)}),
        "1 unknown: layers.0.attention.dense.bias of tensor rank 1, stage 1",
    ),
    "a layer too many": (
        lambda model: model["transformer"].update({"layers.2.input_layernorm.weight": torch.zeros(32)}),
        "1 unknown: layers.2.input_layernorm.weight of tensor rank 1, stage 1",
    ),
    "another shape": (
        lambda model: model["transformer"].update({_DENSE: torch.zeros(32, 15)}),
        f"1 of another form: {_DENSE} of tensor rank 1, stage 1 (expected (32, 16), got float32 (32, 15))",
    ),
    "another dtype": (
        lambda model: model["transformer"].update({_DENSE: torch.zeros(32, 16, dtype=torch.float16)}),
        f"1 of another form: {_DENSE} of tensor rank 1, stage 1 (expected (32, 16), got float16 (32, 16))",
    ),
    "the head's rows": (
        lambda model: model.update({"lm_head": torch.zeros(200, 32)}),
        "lm_head of tensor rank 1, stage 1 (expected (192, 32), got float32 (200, 32))",
    ),
}
"""What is done to one rank's model, and what is said."""


RANK_CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    **{
        name: (content, f"expected a dictionary with a model, .* {message}")
        for name, content, message in (
            ("a list", lambda: [1], "got 'list'"),
            ("a tensor", lambda: torch.zeros(1), "got 'PickledTensor'"),
            ("text", lambda: "model", "got 'str'"),
            ("no model", lambda: {"iteration": 1, "x": 2}, r"got \['iteration', 'x'\]"),
            ("a model that is text", lambda: {"model": "x"}, r"got \['model'\]"),
        )
    },
    "contains itself": (lambda: {"model": contains_itself()}, "one place each"),
    "deep": (lambda: {"model": nested(200)}, "at most 32 deep"),
}
"""What a rank's file holds, and what is said."""


class TestOriginalSystem:
    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize(("tp", "pp"), [(tp, pp) for tp in (1, 2) for pp in (1, 2, 4)])
    def test_the_same_native_model(self, tmp_path: Path, tp: int, pp: int, nested: bool) -> None:
        expected = native_arrays(_convert(tmp_path / "a", hub_directory(CONFIG)))
        found = native_arrays(_convert(tmp_path / "b", original_files(tp, pp, nested=nested), _trained_tokenizer()))
        for name, array in expected.items():
            # The tokenizer of this one has 320 ids with ChatML inside, so nothing grows; padding rows are gone.
            assert np.array_equal(found[name], array[:320] if array.shape[0] == 322 else array), name

    @pytest.mark.parametrize("pp", [1, 2])
    def test_a_tied_embedding_may_lie_on_the_last_stage_too(self, tmp_path: Path, pp: int) -> None:
        expected = native_arrays(_convert(tmp_path / "a", hub_directory({**CONFIG, "tie_word_embeddings": True})))
        made = _convert(tmp_path / "b", original_files(2, pp, nested=True, tied=True), _trained_tokenizer())
        found = native_arrays(made)
        assert sorted(found) == sorted(expected)
        assert np.array_equal(found["embedding.weight"], expected["embedding.weight"][:320])
        assert made.summary["dropped_tensors"] == pp - 1

    def test_a_tied_embedding_that_differs_is_refused(self, tmp_path: Path) -> None:
        def change(model: dict[str, Any], rank: int, stage: int) -> None:
            if "word_embeddings_for_head" in model:
                model["word_embeddings_for_head"]["weight"][0, 0] += 1

        with pytest.raises(DataError, match=r"tie_word_embeddings true, but lm_head\.weight differs"):
            _convert(tmp_path, original_files(1, 2, nested=True, tied=True, change=change), _trained_tokenizer())

    @pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
    def test_tensors_that_do_not_fit_are_named(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        """Each on the rank 1 of the last stage alone."""

        def on_one_rank(model: dict[str, Any], rank: int, stage: int) -> None:
            if (rank, stage) == (1, 1):
                change(model["language_model"])

        with pytest.raises(DataError, match=re.escape(message)):
            _convert(tmp_path, original_files(2, 2, nested=False, change=on_one_rank), _trained_tokenizer())

    def test_no_model_at_all_is_refused(self, tmp_path: Path) -> None:
        files = original_files(1, 1, nested=False, change=lambda model, rank, stage: model.clear())
        with pytest.raises(
            DataError, match=r"27 missing: embedding\.word_embeddings\.weight of tensor rank 0, stage 0"
        ):
            _convert(tmp_path, files, _trained_tokenizer())

    @pytest.mark.parametrize("has_config", [False, True])
    @pytest.mark.parametrize(("content", "message"), RANK_CONTENTS.values(), ids=RANK_CONTENTS)
    def test_what_is_no_checkpoint_is_refused(
        self, tmp_path: Path, content: Callable[[], Any], message: str, has_config: bool
    ) -> None:
        files = {"release/mp_rank_00/model_optim_rng.pt": torch_bytes(content())}
        if has_config:
            files["config.json"] = json.dumps(CONFIG).encode()
        with pytest.raises(DataError, match=message):
            _convert(tmp_path, files, _trained_tokenizer())

    def test_no_arguments_and_no_config_is_refused(self, tmp_path: Path) -> None:
        files = {"release/mp_rank_00/model_optim_rng.pt": torch_bytes({"model": {}, "args": {"num_layers": 4}})}
        with pytest.raises(DataError, match=r"under args, got dict; put the model's config\.json beside it"):
            _convert(tmp_path, files, _trained_tokenizer())

    def test_two_spellings_of_one_tensor_are_refused(self, tmp_path: Path) -> None:
        def change(model: dict[str, Any], rank: int, stage: int) -> None:
            model["language_model"]["lm_head.weight"] = model["language_model"]["lm_head"]

        with pytest.raises(DataError, match="lm_head: expected once, found under two spellings"):
            _convert(tmp_path, original_files(1, 1, nested=True, change=change), _trained_tokenizer())

    @pytest.mark.parametrize("tracker", ["9" * 5000, "0" * 5000 + "8", "٧" * 5000])
    def test_a_tracker_of_many_digits_is_refused(self, tmp_path: Path, tracker: str) -> None:
        files = {**original_files(1, 1, nested=True), "latest_checkpointed_iteration.txt": tracker.encode()}
        with pytest.raises(DataError, match="of which there are no rank files") as error:
            _convert(tmp_path, files, _trained_tokenizer())
        assert len(str(error.value)) < 300

    def test_another_family_beside_it_is_refused(self, tmp_path: Path) -> None:
        files = {**original_files(1, 1, nested=False), "config.json": json.dumps(CONFIGS["qwen2"]).encode()}
        with pytest.raises(DataError, match=r"expected a Llama or Mistral model, .* its config.json says qwen2"):
            _convert(tmp_path, files, _trained_tokenizer())

    def test_the_config_comes_from_the_stored_arguments(self, tmp_path: Path) -> None:
        native = _convert(tmp_path, original_files(2, 1, nested=True), _trained_tokenizer())
        spec = json.loads(native.read_bytes("model.json"))["spec"]
        assert (spec["family"], spec["sliding_window"], spec["num_kv_heads"], spec["vocab_size"]) == (
            "mistral",
            8,
            2,
            320,
        )

    def test_a_numbered_iteration(self, tmp_path: Path) -> None:
        files = original_files(1, 1, nested=True, iteration="iter_0000152")
        assert files["latest_checkpointed_iteration.txt"] == b"152"
        assert _convert(tmp_path, files, _trained_tokenizer()).summary["family"] == "mistral"

    @pytest.mark.parametrize("shape", ["two parents", "mixed ranks", "two trackers", "two files", "two iterations"])
    def test_a_second_checkpoint_is_refused(self, tmp_path: Path, shape: str) -> None:
        """Whichever were read last would have been the model."""
        files = original_files(2, 1, nested=True, iteration="iter_0000152")
        tracker, (first, second) = files.pop(TRACKER), sorted(files)
        weights, other = files[first], first.replace("152", "144")
        trees: dict[str, tuple[dict[str, bytes], str]] = {
            "two parents": (
                {f"{at}/{name}": data for at in "ab" for name, data in files.items()},
                "a/.*, b/iter_0000152",
            ),
            "mixed ranks": ({f"a/{first}": weights, f"b/{second}": files[second]}, "a/iter_0000152, b/iter_0000152"),
            "two trackers": ({**files, TRACKER: tracker, f"old/{TRACKER}": tracker}, f"got {TRACKER}, old/{TRACKER}"),
            "two files": (
                {**files, first.replace("_optim", ""): weights},
                "rank 0, stage 0, got .*/model_optim_rng.pt, ",
            ),
            "two iterations": ({**files, other: weights, TRACKER: tracker}, "got iter_0000144, iter_0000152"),
        }
        tree, named = trees[shape]
        with pytest.raises(DataError, match=named):
            _convert(tmp_path, tree, _trained_tokenizer())

    def test_a_missing_rank_is_refused(self, tmp_path: Path) -> None:
        files = original_files(2, 2, nested=True)
        del files["release/mp_rank_01_000/model_optim_rng.pt"]
        with pytest.raises(DataError, match="expected 2 x 2 rank files, got 3"):
            _convert(tmp_path, files, _trained_tokenizer())

    def test_a_tracker_that_names_nothing_is_refused(self, tmp_path: Path) -> None:
        files = {**original_files(1, 1, nested=True), "latest_checkpointed_iteration.txt": b"7"}
        with pytest.raises(DataError, match="says 'iter_0000007', of which there are no rank files"):
            _convert(tmp_path, files, _trained_tokenizer())


class Exploit:
    """Writes a file when it is unpickled by anything that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


class TestExploits:
    """The same through the whole stage, whichever file carries it: refused, named, not run, nothing written."""

    @pytest.mark.parametrize("kind", ["bin", "original"])
    def test_is_refused(self, tmp_path: Path, kind: str) -> None:
        exploit = Exploit(tmp_path / "owned")
        if kind == "bin":
            content = torch_bytes({**_state(), "model.norm.weight": exploit})
            files = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": content}
        else:
            files = {
                **original_files(1, 1, nested=True),
                "release/mp_rank_00/model_optim_rng.pt": torch_bytes({"args": exploit}),
            }
        with pytest.raises(DataError, match=r"asks for posix\.system"):
            _convert(tmp_path, files, _trained_tokenizer())
        assert not exploit.target.exists()
        torch.load(io.BytesIO(torch_bytes(exploit)), weights_only=False)
        assert exploit.target.exists()  # else the test would prove nothing


def _trained_tokenizer() -> dict[str, bytes]:
    return tokenizer_directory(320, chatml_at=(318, 319))
