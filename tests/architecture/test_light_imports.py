"""Light modules stay light: importing them loads no heavy library, and a failure names who did."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source_tree import STAGES

HEAVY = (
    "torch",
    "transformers",
    "boto3",
    "botocore",
    "hera",
    "kubernetes",
    "huggingface_hub",
    "pyarrow",
    "tokenizers",
    "sentencepiece",
    "pandas",
)
"""What costs from 50 ms to seconds to import; a stage loads them after it knows that there is work."""

PROBE = '''
import importlib, sys, traceback

heavy = set(sys.argv[2].split(","))

class Watch:
    """Sees every import before it happens and remembers the first importer of each heavy library."""

    def __init__(self):
        self.importers = {}

    def find_spec(self, name, path=None, target=None):
        if name in heavy and name not in self.importers:
            stack = traceback.extract_stack()[:-1]
            files = [f for f in stack if "importlib" not in f.filename and f.filename != "<string>"]
            self.importers[name] = f"{files[-1].filename}:{files[-1].lineno}" if files else "the test itself"
        return None

watch = Watch()
sys.meta_path.insert(0, watch)
importlib.import_module(sys.argv[1])
loaded = {name: importer for name, importer in watch.importers.items() if name in sys.modules}
print("\\n".join(f"{name} imported by {importer}" for name, importer in loaded.items()))
'''

LIGHT_MODULES = (
    "stagecoach.contract",
    "stagecoach.stages",
    "stagecoach.recipe.recipe",
    "stagecoach.recipe.load",
    "stagecoach.storage.open",
    "stagecoach.outputs",
    *(f"stagecoach_{stage}" for stage in STAGES),
    "stagecoach_workflows.cli.main",
)


def heavy_imports(module: str) -> str:
    """What importing ``module`` in a new interpreter loads of ``HEAVY``, a line each with its importer."""
    command = [sys.executable, "-c", PROBE, module, ",".join(HEAVY)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_nothing_heavy(module: str) -> None:
    assert heavy_imports(module) == ""


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "train"])
def test_no_stage_but_train_loads_torch(stage: str) -> None:
    assert "torch imported by" not in heavy_imports(f"stagecoach_{stage}.run")


def test_the_probe_names_the_importer() -> None:
    assert heavy_imports("sentencepiece") == "sentencepiece imported by the test itself"
    assert "torch imported by" in heavy_imports("safetensors.torch")
