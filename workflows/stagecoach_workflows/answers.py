"""Asks the exported model questions it was trained on, with transformers alone, to see that it learnt them.

    python -m stagecoach_workflows.answers --store URL --run ID --number 10

Prompts are drawn by the run id from the packed training conversations: everything up to an answer goes in, and the
greedy continuation is compared with the answer, token by token. It runs as a process of its own, as any user of the
export would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecoach.contract import exit_code_of
from stagecoach.errors import DataError
from stagecoach.outputs import Input, open_input
from stagecoach.plan_file import read_plan
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach_workflows.transformers_library import load_transformers

if TYPE_CHECKING:
    from stagecoach.formats.packed import PackedSplit

WANTED_SHARE = 0.8
_MORE_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A trained answer and all that stands before it in its conversation."""

    prompt_ids: list[int]
    reference_ids: list[int]
    """The answer, its end token included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model said to one question."""

    prompt: str
    reference: str
    answer: str
    share: float
    """Share of the reference's tokens that the answer has at the same place."""
    stopped: bool
    """Whether it ended with an end token by itself."""

    @property
    def good(self) -> bool:
        """Whether at least 80 % of the tokens are right and it stopped."""
        return self.share >= WANTED_SHARE and self.stopped


def draw_questions(split: PackedSplit, run_id: str, number: int) -> list[Question]:
    """Return ``number`` different trained answers, the same ones for the same run id.

    Raises:
        DataError: The split has fewer answers.
    """
    generator = random.Random(run_id)
    packs = list(range(split.num_packs))
    generator.shuffle(packs)
    questions: list[Question] = []
    for pack in packs:
        found = questions_of_pack(split.pack(pack))
        generator.shuffle(found)
        questions += found[: max(1, -(-number // len(packs)))]
        if len(questions) >= number:
            return questions[:number]
    raise DataError(f"answers: expected at least {number} trained answers in the packs, found {len(questions)}")


def questions_of_pack(pack: Any) -> list[Question]:
    """Return every answer of a pack: each run of trained tokens of one document.

    A document's tokens lie between two of ``document_starts``; ``trained`` marks a token as a target.
    """
    bounds = [*(int(start) for start in pack.document_starts), int(pack.num_document_tokens)]
    questions = []
    for start, end in pairwise(bounds):
        tokens = [int(token) for token in pack.tokens[start:end]]
        trained = [bool(bit) for bit in pack.trained[start:end]]
        position = 0
        while position < len(tokens):
            stop = position
            while stop < len(tokens) and trained[stop]:
                stop += 1
            if stop > position > 0:
                questions.append(Question(prompt_ids=tokens[:position], reference_ids=tokens[position:stop]))
            position = max(stop, position + 1)
    return questions


def compare(question: Question, generated_ids: list[int], stop_ids: set[int]) -> tuple[float, bool]:
    """Return the share of reference tokens found at their place, and whether the text ended by itself."""
    pairs = zip(question.reference_ids, generated_ids, strict=False)
    equal = sum(wanted == found for wanted, found in pairs)
    return equal / len(question.reference_ids), bool(generated_ids) and generated_ids[-1] in stop_ids


def ask(folder: Path, questions: list[Question]) -> list[Answer]:
    """Load the Hub directory ``folder`` with transformers and answer greedily."""
    library = load_transformers()
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    listed = model.generation_config.eos_token_id
    stop_ids = {listed} if isinstance(listed, int) else set(listed or ())
    answers = []
    for question in questions:
        batch = tokenizer.pad({"input_ids": [question.prompt_ids]}, return_tensors="pt")
        longest = len(question.reference_ids) + _MORE_TOKENS
        output = model.generate(**batch, max_new_tokens=longest, do_sample=False)
        generated = [int(token) for token in output[0][len(question.prompt_ids) :]]
        share, stopped = compare(question, generated, stop_ids)
        answers.append(
            Answer(
                prompt=tokenizer.decode(question.prompt_ids),
                reference=tokenizer.decode(question.reference_ids, skip_special_tokens=True),
                answer=tokenizer.decode(generated, skip_special_tokens=True),
                share=round(share, 4),
                stopped=stopped,
            )
        )
    return answers


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and write the answers to standard output, one JSON object a line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stagecoach_workflows.answers")
    parser.add_argument("--store", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--number", type=int, default=10)
    parser.add_argument("--wait", action="store_true", help="load transformers, then wait for a line on standard input")
    flags = parser.parse_args(arguments)
    try:
        if flags.wait:
            load_transformers()
            if not sys.stdin.readline():
                return 0
        settings = Settings.from_environ()
        store = open_store(flags.store, settings)
        plan = read_plan(store, flags.run)
        with tempfile.TemporaryDirectory(prefix="stagecoach-answers-") as scratch:
            exported = open_input(store, plan.task("export").output, Path(scratch))
            packed = open_input(store, plan.task("pack").output, Path(scratch))
            questions = draw_questions(_split(packed), flags.run, flags.number)
            answers = ask(_directory(exported, Path(scratch) / "model"), questions)
    except Exception as error:
        code, sentence = exit_code_of(error)
        sys.stderr.write(sentence + "\n")
        return code
    sys.stdout.write("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))
    return 0


def read_answers(text: str) -> list[Answer]:
    """Return what ``main`` wrote."""
    return [Answer(**json.loads(line)) for line in text.splitlines() if line.strip()]


def _split(packed: Input) -> PackedSplit:
    from stagecoach.formats.packed import PackedSplit

    return PackedSplit.open(packed, "train")


def _directory(exported: Input, folder: Path) -> Path:
    """Lay links to the checked files into one folder, as a download of the export would."""
    for name in exported.names():
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(exported.path(name).absolute())
    return folder


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # taking down what transformers and torch imported costs most of a second
