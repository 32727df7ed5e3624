"""Brings the tokenizer and the chat data of a recipe into the store, so that people can look at them before a run.

The tasks are those of the run itself, under the same content keys: what is brought for a look is there for the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from stagecoach.paths import manifest_key
from stagecoach.recipe.recipe import Recipe
from stagecoach.settings import Settings, child_environ
from stagecoach.source_identity import HubLister
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.decisions import Candidate, candidates, source_configs

TOKENIZER_TASK = "download-tokenizer"


class StageFailed(Exception):
    """A stage that was started here failed; it has said why on standard error.

    Attributes:
        exit_code: What it ended with.
    """

    def __init__(self, exit_code: int) -> None:
        """Keep the exit code of the stage."""
        super().__init__(f"a stage ended with exit code {exit_code}")
        self.exit_code = exit_code


def bring(
    recipe: Recipe, store: ObjectStore, settings: Settings, list_hub: HubLister, *, with_data: bool
) -> dict[str, str]:
    """Run the download tasks whose output is missing and return where each output lies, by input name of ``pack``.

    Args:
        recipe: The recipe.
        store: Where outputs go.
        settings: The environment.
        list_hub: Asks the Hub what a revision stands for.
        with_data: Bring the data sources too, not the tokenizer alone.

    Raises:
        StagecoachError: A source cannot be resolved.
        StageFailed: A download failed.
    """
    configs = source_configs(recipe, settings, list_hub, store)
    wanted = {task: config for task, config in configs.items() if with_data or task == TOKENIZER_TASK}
    outputs: dict[str, str] = {}
    for task, candidate in candidates(recipe, wanted).items():
        if store.head(manifest_key(candidate.output)) is None:
            _download(candidate, store)
        outputs[task.removeprefix("download-")] = candidate.output
    return outputs


def _download(candidate: Candidate, store: ObjectStore) -> None:
    config = candidate.config.model_dump(mode="json")
    request = {"task": candidate.node.kind.name, "config": config, "inputs": {}, "name": candidate.name}
    run_module(["stagecoach_download", "--store", store.url, "--config", "-"], json.dumps(request))


def look(arguments: Sequence[str], request: str = "") -> None:
    """Run the pack stage's own viewer on this terminal.

    Raises:
        StageFailed: It failed.
    """
    run_module(["stagecoach_pack.look", *arguments], request)


def run_module(module: Sequence[str], request: str) -> None:
    """Run ``python -m`` with these words and that standard input on this terminal; raises ``StageFailed``."""
    done = subprocess.run([sys.executable, "-m", *module], input=request, text=True, env=child_environ(), check=False)
    if done.returncode:
        raise StageFailed(done.returncode)
