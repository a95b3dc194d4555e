"""mypy cannot ask for annotations in kernels/, where Triton's kernels have none: this does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "kernels").glob("*.py"))


def python_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """The functions that Python runs: all but those that Triton compiles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if "triton.jit" not in decorators:
                yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_function_of_python_is_annotated(path: Path) -> None:
    for function in python_functions(ast.parse(path.read_text())):
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        missing = [
            argument.arg
            for argument in arguments
            if argument is not None
            and argument.annotation is None
            and argument.arg not in ("self", "cls")
        ]
        assert not missing and function.returns is not None, f"{function.name}: {missing}"
