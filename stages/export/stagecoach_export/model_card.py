"""Writes README.md, the model card: what the model is, what it was made from, how well it does, how to run
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stagecoach.formats.native import NativeModel
from stagecoach.outputs import Input
from stagecoach.recipe.base import effect_of
from stagecoach.recipe.export import ExportConfig
from stagecoach.recipe.train import TrainConfig
from stagecoach_export.checkpoints import Chosen
from stagecoach_export.loss_curve import bars, loss_rows, read_losses

_DATA_COUNTS = {
    "rows_read": "rows read",
    "bad_rows": "rows left out because they are damaged",
    "num_documents": "documents trained on",
    "num_tokens": "tokens in them",
    "num_trained_tokens": "trained tokens (answers)",
    "num_packs": "packs",
    "pack_tokens": "token slots of a pack",
    "fill": "filled share of the slots",
    "heldout_documents": "documents held out for evaluation",
    "heldout_trained_tokens": "targets in them",
}

_TRAIN_COUNTS = {"tokens": "tokens seen", "targets": "targets seen"}

_RUN_IT = """\
## Run it

With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this directory, or the repository's name
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "Hello!"}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=256)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

With vLLM (an OpenAI-compatible server):

```sh
vllm serve .
```

With llama.cpp:

```sh
python convert_hf_to_gguf.py . --outfile model.gguf
llama-cli -m model.gguf --jinja -cnv
```

Answers end by themselves: the stop tokens are listed in `generation_config.json`.
"""


def model_card(config: ExportConfig, inputs: Mapping[str, Input], model: NativeModel, chosen: Chosen) -> str:
    """Return the text of README.md.

    Args:
        config: The recipe's export section.
        inputs: Of the stage; what their manifests say goes into the card.
        model: The native model's description.
        chosen: The exported checkpoint.
    """
    native, trained, packed = inputs["native"], inputs["trained"], inputs.get("packed")
    base = _base_model(native)
    spec = model.spec
    front = {
        "base_model": base,
        "license": native.summary.get("license"),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    steps = "the base model, not trained" if chosen.iteration == 0 else f"{chosen.iteration:,} training steps"
    sections = [
        _front_matter(front),
        f"# {native.manifest.name}\n",
        f"A chat model: {base or native.manifest.name} after {steps}, made with Stagecoach.\n"
        if chosen.iteration
        else f"A chat model: {base or native.manifest.name}, {steps}, made with Stagecoach.\n",
        _table(
            ("property", "value"),
            [
                ("base model", base or native.manifest.name),
                ("licence of the base model", native.summary.get("license") or "see the base model"),
                ("family", spec.family),
                ("parameters", f"{spec.num_parameters:,}"),
                ("vocabulary", f"{spec.vocab_size:,} ({len(model.new_tokens)} tokens added)"),
                ("longest sequence", f"{spec.max_position_embeddings:,}"),
                ("weights", config.dtype),
                ("step", f"{chosen.iteration:,}"),
            ],
        ),
        _data(packed),
        _training(trained, chosen),
        _losses(trained, chosen),
        _RUN_IT,
    ]
    return "\n".join(section for section in sections if section)


def _base_model(native: Input) -> str | None:
    source = native.summary.get("source")
    repo = source.get("repo") if isinstance(source, dict) else None
    return str(repo) if repo else None


def _front_matter(values: Mapping[str, str | None]) -> str:
    # JSON text is YAML text, whatever characters are in it.
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value]
    return "\n".join(["---", *lines, "---", ""])


def _data(packed: Input | None) -> str:
    if packed is None:
        return ""
    sources = packed.summary.get("sources")
    rows = [(f"conversations from {name}", _short(count)) for name, count in _items(sources)]
    rows += [(label, _count(packed.summary[key])) for key, label in _DATA_COUNTS.items() if key in packed.summary]
    return "## Data\n\n" + _table(("count", "value"), rows) if rows else ""


def _count(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else _short(value)


def _items(value: Any) -> list[tuple[str, Any]]:
    return sorted(value.items()) if isinstance(value, dict) else []


def _training(trained: Input, chosen: Chosen) -> str:
    """Return what was trained by which rule: the fields that change the result, and the layout."""
    recipe = trained.manifest.config
    decisive = [name for name, field in TrainConfig.model_fields.items() if effect_of(field) == "result"]
    rows = [(name, _short(recipe[name])) for name in (*decisive, "layout") if recipe.get(name) is not None]
    counts = [(label, chosen.state.get(key)) for key, label in _TRAIN_COUNTS.items()]
    rows += [(label, f"{count:,}") for label, count in counts if isinstance(count, int)]
    return "## Training\n\n" + _table(("field", "value"), rows) if rows else ""


def _losses(trained: Input, chosen: Chosen) -> str:
    losses = read_losses(trained, chosen.iteration)
    heldout = chosen.state.get("heldout")
    rows = loss_rows(losses, heldout if isinstance(heldout, Mapping) else {})
    if not rows:
        return ""
    curve = f"```\n{bars(list(losses.values()))}\n```\n" if losses else ""
    head = ("step", "training loss since the row above", "held-out loss", "held-out next-token accuracy")
    return "\n".join(["## Losses\n", curve, _table(head, rows)])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
