"""torch's private functions: still there, and used in one file of the package only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from llama_fast import _torch_internals
from llama_fast._torch_internals import NAMES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for room in ("llama_fast", "kernels") for p in (ROOT / room).rglob("*.py"))
# Attributes of torch's objects, which have no path from the module.
ATTRIBUTES = {
    "_base": lambda: torch.zeros(1),
    "_op": lambda: torch.ops.aten.add.Tensor,
    "_forward_hooks": lambda: nn.Linear(1, 1),
    "_forward_pre_hooks": lambda: nn.Linear(1, 1),
    "_backward_hooks": lambda: nn.Linear(1, 1),
    "_backward_pre_hooks": lambda: nn.Linear(1, 1),
}


@pytest.mark.parametrize("path", NAMES)
def test_torch_has(path: str) -> None:
    assert NAMES[path], f"torch {torch.__version__} has no torch.{path}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_torchs_objects_have(name: str) -> None:
    owner = ATTRIBUTES[name]()
    assert hasattr(owner, name), f"{type(owner).__name__} of torch {torch.__version__}: no {name}"


def test_torch_can_find_a_process_group_by_name() -> None:
    if torch.distributed.is_available():
        assert hasattr(torch.distributed.distributed_c10d, "_resolve_process_group")


def test_a_name_that_torch_has_not_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_torch_internals, "NAMES", {})
    missing = _torch_internals._private("_C._no_such_thing")
    assert _torch_internals.NAMES == {"_C._no_such_thing": False}
    with pytest.raises(NotImplementedError, match=r"has no torch\._C\._no_such_thing$"):
        missing()


def private_uses(source: str) -> Iterator[str]:
    """What a file uses of torch that begins with an underscore."""
    tree = ast.parse(source)
    modules = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname for a in node.names if a.asname and a.name.startswith("torch")}
            yield from (a.name for a in node.names if a.name.startswith("torch") and "._" in a.name)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            modules |= {a.asname or a.name for a in node.names}
            for alias in node.names:
                if "._" in f"{node.module}.{alias.name}":
                    yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr in ATTRIBUTES and not ast.unparse(node).startswith("self."):
            yield ast.unparse(node)
        elif node.attr.startswith("_") and not node.attr.startswith("__"):
            root: ast.expr = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules:
                yield ast.unparse(node)


def test_private_uses_are_noticed() -> None:
    source = """
import torch, torch._dynamo
import torch.nn.modules.module as m
from torch._C import _functorch
from torch.autograd import forward_ad
torch._C._is_tracing(), m._global_forward_hooks, forward_ad._current_level
x._base, layer._backward_hooks
torch.Tensor.__torch_function__, self._base, torch.nn.Linear
"""
    assert sorted(private_uses(source)) == [
        "forward_ad._current_level",
        "layer._backward_hooks",
        "m._global_forward_hooks",
        "torch._C",
        "torch._C._functorch",
        "torch._C._is_tracing",
        "torch._dynamo",
        "x._base",
    ]


def test_one_file_uses_private_names() -> None:
    uses = {
        str(path.relative_to(ROOT)): found
        for path in FILES
        if (found := sorted(set(private_uses(path.read_text()))))
    }
    assert list(uses) == ["llama_fast/_torch_internals.py"], uses
