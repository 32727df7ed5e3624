"""The conventions that make every file readable the same way: sizes, docstrings, types, the environment."""

from __future__ import annotations

import ast

from tests.architecture.source_tree import FunctionNode, functions, parse, product_files, shown

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400


def test_there_is_code_to_look_at() -> None:
    assert len(product_files()) > 30


def test_every_module_says_what_it_is_for() -> None:
    without = [shown(path) for path in product_files() if not ast.get_docstring(parse(path))]
    assert without == []


def test_files_stay_short() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in product_files()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_stay_short() -> None:
    too_long = {
        f"{shown(path, function.lineno)} {function.name}": function.end_lineno - function.lineno + 1
        for path in product_files()
        for function in functions(parse(path))
        if function.end_lineno is not None and function.end_lineno - function.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert too_long == {}


def untyped_parts(function: FunctionNode) -> list[str]:
    """Names of the parameters without an annotation, and ``return`` where the result has none.

    Kernels are left out: Triton reads annotations itself, as instructions to its compiler.
    """
    if any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list):
        return []
    spec = function.args
    parameters = [
        *spec.posonlyargs,
        *spec.args,
        *spec.kwonlyargs,
        *(a for a in (spec.vararg, spec.kwarg) if a),
    ]
    missing = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return missing if function.returns is not None else [*missing, "return"]


def test_every_function_is_typed() -> None:
    untyped = {
        f"{shown(path, function.lineno)} {function.name}": untyped_parts(function)
        for path in product_files()
        for function in functions(parse(path))
        if untyped_parts(function)
    }
    assert untyped == {}


def test_init_files_hold_a_docstring_only() -> None:
    more = [shown(path) for path in product_files() if path.name == "__init__.py" and len(parse(path).body) != 1]
    assert more == []


def test_only_the_command_line_prints() -> None:
    calls = [
        shown(path, node.lineno)
        for path in product_files()
        if "cli" not in path.parts
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_only_settings_reads_the_environment() -> None:
    """Both spellings: ``os.environ`` / ``os.getenv`` and ``from os import environ``."""
    readers = {
        shown(path, node.lineno)
        for path in product_files()
        if not shown(path).endswith("stagecoach/settings.py")
        for node in ast.walk(parse(path))
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "getenv")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {a.name for a in node.names}
        )
    }
    assert readers == set()


def test_no_bare_exception_is_raised() -> None:
    """``raise Exception(...)`` tells its reader neither a cause nor an exit code."""
    bare = [
        shown(path, node.lineno)
        for path in product_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in ("Exception", "BaseException")
    ]
    assert bare == []
