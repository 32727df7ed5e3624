"""Answers with transformers, whichever version is first on the path; a program of its own, as any user would write it."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers

library: Any = transformers


def logits(folder: str, ids: list[int]) -> Any:
    """Return the fp32 logits of one text."""
    model = library.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="float32").eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def answers(folder: str, chats: list[Any], max_tokens: int) -> dict[str, Any]:
    """Return the ids of each prompt and what follows greedily."""
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    model = library.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="float32").eval()
    prompts, generated = [], []
    for chat in chats:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        batch = tokenizer.pad({"input_ids": [ids]}, return_tensors="pt")
        output = model.generate(**batch, max_new_tokens=max_tokens, do_sample=False)[0].tolist()
        prompts.append(ids)
        generated.append(output[len(ids) :])
    return {"prompts": prompts, "generated": generated}


def main() -> None:
    """Answer the request of standard input on standard output."""
    library.utils.logging.set_verbosity_error()
    request = json.load(sys.stdin)
    found: dict[str, Any] = {"version": library.__version__}
    if "folder" in request:
        found |= answers(request["folder"], request["chats"], request["max_tokens"])
    for source, export in request.get("pairs", []):
        ours, theirs = logits(export, request["ids"]), logits(source, request["ids"])
        rows = theirs.shape[-1]
        found.setdefault("differences", []).append(float((ours[:, :rows] - theirs).abs().max()))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
