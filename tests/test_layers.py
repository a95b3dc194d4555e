"""Imports run downwards only: who may import whom, read from the sources.

Every import counts: those inside functions, which are executed late, and those for type checking.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache

import pytest

from tests.paths import REPOSITORY

# From bottom to top. A module imports from its own layer and from those below it. The ground floor
# is every module `llama_fast._name`.
GROUND = "_"
LAYERS = (
    GROUND,
    "reference",
    "kernels",
    "ops",
    "info",
    "nn",
    "tokenizers",
    "data",
    "models",
    "integrations",
    "generation",
    "eval",
    "train",
    "llama_fast",  # the front door, `import llama_fast`: it gathers the public names
    "demo",
    "cli",
    "benchmarks",
)
# What lies below and is not to be imported all the same.
FORBIDDEN = {
    ("generation", "integrations"): "what runs a model takes it as a Decoder",
    ("train", "eval"): "a scorer of benchmarks is a callback",
    ("benchmarks", "demo"): "the demo is a leaf",
}
# The only module that imports from a layer.
SOLE_IMPORTER = {"demo": "llama_fast.cli.demo"}

Sources = Mapping[str, tuple[str, bool]]  # module -> its text, and whether it is a package


@cache
def sources() -> dict[str, tuple[str, bool]]:
    """Every module of the package, as it is installed: `kernels` and `benchmarks` are within it."""
    modules = {}
    for folder in ("llama_fast", "kernels", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            name = name if folder == "llama_fast" else f"llama_fast.{name}"
            modules[name.removesuffix(".__init__")] = path.read_text("utf-8"), name.endswith("__")
    return modules


def layer(module: str) -> str:
    """The layer of a module: the first part of its name below `llama_fast`."""
    name = module.removeprefix("llama_fast.").split(".")[0]
    if name == "__main__":
        return "cli"
    return GROUND if name.startswith("_") else name


def imports(module: str, modules: Sources) -> set[str]:
    """The modules of `modules` that one of them imports."""
    found = set()
    for parent, name in _named(module, *modules[module]):
        target = f"{parent}.{name}" if f"{parent}.{name}" in modules else parent
        if target in modules and target != module:
            found.add(target)
    return found


@cache
def _named(module: str, text: str, is_package: bool) -> tuple[tuple[str, str], ...]:
    """(module, name or "") of all import statements of a module."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    named = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            named += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*parts, *(node.module.split(".") if node.module else [])])
            if parent.startswith("benchmarks"):  # pytest-benchmark runs them from the repository
                parent = f"llama_fast.{parent}"
            named += [(parent, alias.name) for alias in node.names]
    return tuple(named)


def faults(modules: Sources) -> list[str]:
    """The imports that the table does not allow, a line each."""
    lines = []
    for module in modules:
        own = layer(module)
        if own not in LAYERS:
            lines.append(f"{module}: expected a layer of the table, {own} is not in it")
            continue
        for target in sorted(imports(module, modules)):
            other = layer(target)
            if other not in LAYERS:
                continue  # said above, of the target itself
            if LAYERS.index(other) > LAYERS.index(own):
                lines.append(f"{module} imports {target}, upwards from {own} to {other}")
            elif reason := FORBIDDEN.get((own, other)):
                lines.append(f"{module} imports {target}: {reason}")
            elif other != own and module != SOLE_IMPORTER.get(other, module):
                lines.append(f"{module} imports {target}: only {SOLE_IMPORTER[other]} may")
    return lines


def circles(modules: Sources) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan 1972)."""
    graph = {module: sorted(imports(module, modules)) for module in modules}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph.get(module, ()):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_imports_run_downwards() -> None:
    assert faults(sources()) == []


def test_no_modules_import_each_other() -> None:
    assert circles(sources()) == []


def test_every_layer_is_there() -> None:
    assert {layer(module) for module in sources()} == set(LAYERS)


def test_kernels_import_the_reference_and_the_ground_floor_alone() -> None:
    modules = sources()
    allowed = {GROUND, "reference", "kernels"}
    for module in modules:
        if module.startswith("llama_fast.kernels"):
            assert {layer(target) for target in imports(module, modules)} <= allowed, module


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("ops.new", "from llama_fast.models.llama import LLaMA", "upwards from ops to models"),
        ("ops.new", "def f():\n    import llama_fast.train.run", "upwards from ops to train"),
        ("ops.new", "from ..nn import RMSNorm", "upwards from ops to nn"),
        ("ops.backends.new", "from ... import eval", "upwards from ops to eval"),
        ("_new", "from llama_fast import reference", "upwards from _ to reference"),
        ("kernels.new", "from llama_fast.ops import rope", "upwards from kernels to ops"),
        ("models.new", "from llama_fast.integrations import patch", "from models to integrations"),
        ("eval.new", "from llama_fast.train.build import make_model", "upwards from eval to train"),
        ("data.new", "import llama_fast", "upwards from data to llama_fast"),
        ("train.new", "from llama_fast import rope", "upwards from train to llama_fast"),
        ("train.new", "from llama_fast.eval.engine import Scorer", "a scorer of benchmarks is a"),
        ("generation.new", "from llama_fast.integrations import patch", "takes it as a Decoder"),
        ("cli.new", "from llama_fast.demo.answer import ask", "only llama_fast.cli.demo may"),
        ("benchmarks.new", "from llama_fast.demo import kernels", "the demo is a leaf"),
        ("rooms.new", "", "expected a layer of the table, rooms is not in it"),
    ],
)
def test_a_wrong_import_is_a_fault(module: str, text: str, fault: str) -> None:
    name = f"llama_fast.{module}"
    before = set(faults(sources()))
    new = [line for line in faults({**sources(), name: (text, False)}) if line not in before]
    assert len(new) == 1 and name in new[0] and fault in new[0]


def test_a_right_import_is_no_fault() -> None:
    text = "from llama_fast.demo import kernels\nfrom llama_fast._write import write_whole\n"
    modules = {"llama_fast": ("", True), "llama_fast.demo": ("", True)}
    modules |= {"llama_fast.demo.kernels": ("", False), "llama_fast._write": ("", False)}
    modules["llama_fast.cli.demo"] = text, False
    assert faults(modules) == [] and circles(modules) == []


def test_a_circle_is_found_through_others() -> None:
    modules = {
        "llama_fast.ops.a": ("from .b import x", False),
        "llama_fast.ops.b": ("def f():\n    from llama_fast.ops import c", False),
        "llama_fast.ops.c": ("if False:\n    from .a import y", False),
        "llama_fast.ops.d": ("from .a import y", False),
    }
    assert circles(modules) == [["llama_fast.ops.a", "llama_fast.ops.b", "llama_fast.ops.c"]]
