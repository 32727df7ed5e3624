"""An exported directory, loaded by transformers, computes what the source computes, to the last bit, and
stops by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.outputs import Input
from stagecoach.parallel.slicing import RankLayout
from stagecoach.storage.local import LocalStore
from tests.tiny_models import CONFIGS, Pipeline, hub_directory, tokenizer_directory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def _folder(files: Input, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in files.names():
        (folder / name).write_bytes(files.read_bytes(name))
    return folder


LAYOUTS = [RankLayout(tensor, pipeline) for tensor in (1, 2, 4) for pipeline in (1, 2, 4)]


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_those_of_the_source_through_every_layout(tmp_path: Path, family: str) -> None:
    """convert, shard, export, with the source's weights and the native ones deleted before export."""
    config = {**CONFIGS[family], "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
    pipeline = Pipeline(LocalStore(tmp_path / "store"), tmp_path)
    model = pipeline.finish("sources/models/m-1/", hub_directory(config))
    source = transformers.AutoModelForCausalLM.from_pretrained(_folder(model, tmp_path / "source"))
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
    native = pipeline.convert(model, tokenizer)
    trained = {
        layout: pipeline.checkpoint_of(
            pipeline.shard(native, layout.tensor_parallel, layout.pipeline_parallel), f"trained/m-{number}/"
        )
        for number, layout in enumerate(LAYOUTS)
    }
    pipeline.store.delete([model.entry("model.safetensors").path, native.entry("model.safetensors").path])
    exports = {
        layout: pipeline.export(trained[layout], native, tokenizer, f"exports/m-{number}/", dtype="fp32")
        for number, layout in enumerate(LAYOUTS)
    }
    digests = {layout: export.entry("model.safetensors").sha256 for layout, export in exports.items()}
    assert digests == dict.fromkeys(LAYOUTS, digests[LAYOUTS[0]])
    found = transformers.AutoModelForCausalLM.from_pretrained(_folder(exports[LAYOUTS[-1]], tmp_path / "export"))
    ids = torch.arange(5, 65)[None]
    with torch.no_grad():
        ours, theirs = found(ids).logits, source(ids).logits
    assert ours.shape[-1] == 322
    assert ours.dtype == torch.float32
    # The head has two rows more, so the last matrix product may be summed in another order.
    assert (ours[..., :320] - theirs).abs().max() <= 1e-5
    assert found.generation_config.eos_token_id == [321, 2]


def test_the_exported_tokenizer_knows_its_ends(tmp_path: Path) -> None:
    pipeline = Pipeline(LocalStore(tmp_path / "store"), tmp_path)
    model = pipeline.finish("sources/models/m-1/", hub_directory(CONFIGS["mistral"]))
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
    native = pipeline.convert(model, tokenizer)
    exported = pipeline.export(pipeline.trained(native, RankLayout()), native, tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(_folder(exported, tmp_path / "export"))
    assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (321, 1, 0)
    assert loaded.apply_chat_template([{"role": "user", "content": "w7 w9"}], tokenize=False) == "w7 w9"
