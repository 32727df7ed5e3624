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


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layout", [RankLayout(1, 1), RankLayout(2, 3)], ids=["tp1-pp1", "tp2-pp3"])
def test_logits_are_those_of_the_source(tmp_path: Path, family: str, layout: RankLayout) -> None:
    pipeline = Pipeline(LocalStore(tmp_path / "store"), tmp_path)
    model = pipeline.finish("sources/models/m-1/", hub_directory(CONFIGS[family]))
    source = transformers.AutoModelForCausalLM.from_pretrained(_folder(model, tmp_path / "source"))
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
    native = pipeline.convert(model, tokenizer)
    for info in list(pipeline.store.list("sources/models/")):
        pipeline.store.delete([info.key])
    exported = pipeline.export(pipeline.trained(native, layout), native, tokenizer, dtype="fp32")
    found = transformers.AutoModelForCausalLM.from_pretrained(_folder(exported, tmp_path / "export"))
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
