"""Where the code lies and how the architecture tests read it, so that each test is only its rule."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("download", "convert", "shard", "pack", "train", "export")
PACKAGE_FOLDERS = (
    ROOT / "shared/stagecoach",
    *(ROOT / f"stages/{stage}/stagecoach_{stage}" for stage in STAGES),
    ROOT / "workflows/stagecoach_workflows",
)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def product_files() -> list[Path]:
    """Every Python file of the product, in a fixed order."""
    return [path for folder in PACKAGE_FOLDERS for path in sorted(folder.rglob("*.py"))]


@functools.cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file; each file is parsed once a session."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree: ast.Module) -> Iterator[FunctionNode]:
    """Every function and method of a file, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def shown(path: Path, line: int | None = None) -> str:
    """``path`` as an error message names it."""
    name = str(path.relative_to(ROOT))
    return name if line is None else f"{name}:{line}"
