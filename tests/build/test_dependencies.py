"""What the package requires is what it imports, and each extra has what its folders need."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement

from tests.build.dependencies import (
    EXACT,
    ROOT,
    canonical,
    extras,
    installed_by,
    lower_bound,
    oldest,
)

# Folder or file -> the extras with each of which it has to work. Without an entry: none.
NEEDS = {
    "llama_fast/_energy.py": ("train",),  # without, it says so
    "llama_fast/_gguf.py": ("checkpoints",),
    "llama_fast/_plot_style.py": ("train", "bench", "demo"),
    "llama_fast/_screen.py": ("train", "eval", "bench", "demo"),
    "llama_fast/_terminal.py": ("train", "eval", "bench", "demo"),
    "llama_fast/tokenizers": ("checkpoints", "serve", "train", "eval", "demo"),
    "llama_fast/models": ("checkpoints", "serve", "train", "eval", "demo"),
    "llama_fast/data/benchmark_tables.py": ("train", "eval", "demo"),
    "llama_fast/data/chat.py": ("serve", "train", "eval"),
    "llama_fast/data/template_language.py": ("serve", "train", "eval"),
    "llama_fast/data/template_process.py": ("serve", "train", "eval"),
    "llama_fast/data/_template_child.py": ("serve", "train", "eval"),
    "llama_fast/data": ("train", "eval"),
    "llama_fast/integrations": ("patch", "serve", "eval", "trainers"),
    "llama_fast/eval": ("eval",),
    "llama_fast/train": ("train",),
    "llama_fast/demo": ("demo",),
    "llama_fast/cli/bench.py": ("bench",),
    "llama_fast/cli/completion.py": ("completion",),
    "llama_fast/cli/demo.py": ("demo",),
    "llama_fast/cli/eval.py": ("eval",),
    "llama_fast/cli/eval_canary.py": ("eval",),
    "llama_fast/cli": ("train",),
    "benchmarks": ("test",),  # compares with whatever there is
    "examples": ("trainers",),
    "tests": ("test",),
}
# Packages of other people that the benchmarks measure where they are installed, and a tracker.
PEERS = {"cut-cross-entropy", "flash-attn", "liger-kernel", "litgpt", "quack"}
# Modules of a distribution with another name.
DISTRIBUTIONS = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py"}
# pytest finds its plugins by itself.
PLUGINS = {"pytest-benchmark", "pytest-xdist"}
OURS = {"llama_fast", "benchmarks", "kernels", "tests", "docs"}


def imports(path: Path) -> set[str]:
    """The distributions that a file imports at run time, whether at once or later."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and not child.level:
                yield child.module or ""
            elif isinstance(child, ast.Call) and child.args:
                name = getattr(child.func, "attr", getattr(child.func, "id", ""))
                argument = child.args[0]
                if name in ("import_module", "importorskip") and isinstance(argument, ast.Constant):
                    yield argument.value
            yield from walk(child)

    tops = {name.split(".")[0] for name in walk(ast.parse(path.read_text("utf-8")))}
    local = {file.stem for file in path.parent.glob("*.py")} | OURS | set(sys.stdlib_module_names)
    return {canonical(DISTRIBUTIONS.get(top, top)) for top in tops - local}


@cache
def imported() -> dict[str, set[str]]:
    """Path of each Python file of the package -> the distributions that it imports."""
    found = {}
    for folder in ("llama_fast", "kernels", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[path.relative_to(ROOT).as_posix()] = imports(path)
    return found


def extras_of(path: str) -> tuple[str, ...]:
    """The extras with each of which a file has to work."""
    while path:
        if path in NEEDS:
            return NEEDS[path]
        path = path.rpartition("/")[0]
    return ("",)


def test_every_import_is_required() -> None:
    lacking = {
        (path, extra or "no extra", name)
        for path, names in imported().items()
        for extra in extras_of(path)
        for name in names - installed_by(extra)
        if not (path.startswith("benchmarks/") and name in PEERS)
    }
    assert not lacking


def test_every_requirement_is_imported() -> None:
    """By a file that has to work with that extra, not by just any."""
    for extra, requirements in extras().items():
        if extra in EXACT or extra == "test":
            continue
        files = [names for path, names in imported().items() if extra in extras_of(path)]
        files += [imported()["llama_fast/data/shards.py"]] if extra == "" else []
        used = set().union(*files) | PLUGINS
        names = {canonical(r.name) for r in requirements if r.name != "llama_fast"}
        if extra == "bench":
            used |= set().union(*(n for p, n in imported().items() if p.startswith("benchmarks/")))
        assert names <= used, (extra, names - used)


def test_an_installation_brings_little() -> None:
    assert installed_by("") == {"torch", "triton", "numpy"}
    assert not installed_by("demo") & {"lightning", "trl", "peft", "accelerate", "lm-eval"}


def test_each_requirement_has_a_lower_bound_and_no_other() -> None:
    bounds: dict[str, set[str]] = {}
    for extra, requirements in extras().items():
        for requirement in requirements if extra not in EXACT else ():
            if requirement.name != "llama_fast":
                assert [s.operator for s in requirement.specifier] == [">="], str(requirement)
                bounds.setdefault(requirement.name, set()).add(str(lower_bound(requirement)))
    assert not {name for name, versions in bounds.items() if len(versions) > 1}


def test_lower_bounds_become_exact_versions() -> None:
    lines = [Requirement(line) for line in oldest()]
    assert {str(r.specifier) for r in lines if r.name == "transformers"} == {"==5.5"}
    assert {tuple(r.extras) for r in lines if r.name == "lm_eval"} == {("math",)}
    assert not [r for r in lines if r.name == "torch"]


NAMES_AN_EXTRA = (
    r"""(?:llama_fast|['"]\.)\[([a-z, ]+)\]""",  # pip install '.[train]'
    r"""^ARG EXTRAS="([a-z,]+)"$""",  # an image's
    r"""^    extra = "(\w+)"$""",  # a command's
    r"""lacking\(.*, "(\w+)"\)""",
    r"""require\(\w+, "(\w+)\"""",
)


def test_texts_name_only_extras_that_exist() -> None:
    """Errors, pages and the Makefile."""
    folders = [ROOT / name for name in ("llama_fast", "docs", "benchmarks", "examples")]
    texts = [path for folder in folders for path in folder.rglob("*")]
    texts = [path for path in texts if path.suffix in (".py", ".md", ".sh", ".Dockerfile")]
    texts += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
    named = {
        (path.name, extra.strip())
        for path in texts
        for pattern in NAMES_AN_EXTRA
        for match in re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)
        for extra in match.split(",")
    }
    assert {extra for _, extra in named} >= {"train", "eval", "checkpoints", "serve", "demo"}
    assert not {item for item in named if item[1] not in extras()}
