"""What `import llama_fast` brings at once, and what it imports when it is used."""

import ast
import copy
import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import llama_fast
from llama_fast._lazy import is_command, lazy_attributes

LAZY = ("data", "eval", "generation", "train", "models.checkpoints", "integrations.flash_attn")


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bare_import_registers_the_operators() -> None:
    run(
        "import llama_fast, torch\n"
        "assert torch.ops.llama_fast.attention.default.name() == 'llama_fast::attention'\n"
    )


def test_a_bare_import_brings_the_ops_alone() -> None:
    out = run(
        "import sys, llama_fast\n"
        f"print([name for name in {LAZY!r} if 'llama_fast.' + name in sys.modules])\n"
        "print({'attention', 'patch', 'nn', 'LLaMA'} <= vars(llama_fast).keys())\n"
        "print('transformers' in sys.modules)"
    )
    assert out.split("\n")[:3] == ["[]", "True", "False"]


def test_a_bare_import_needs_little_beyond_torch() -> None:
    """Of torch's own parts only those that `import torch` loads: torch._dynamo takes as long."""
    out = run(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import llama_fast\n"
        "more = [name for name in sys.modules if name not in before]\n"
        "print(*(name for name in more if name.split('.')[0] not in ('llama_fast', 'torch')))\n"
        "print(*(name for name in more if name.startswith('torch._dynamo')))\n"
    )
    others, dynamo = out.split("\n")[:2]
    assert not {"numpy", "triton", "transformers", "rich", "gguf"} & set(others.split())
    assert not dynamo


@pytest.mark.parametrize("name", ["data", "eval", "info", "ops", "tokenizers", "train.config"])
def test_subpackages_need_no_import_of_their_own(name: str) -> None:
    run(f"import llama_fast\nllama_fast.{name.split('.')[0]}\nimport llama_fast.{name}\n")


def test_a_star_import_brings_every_public_name() -> None:
    pytest.importorskip("transformers")
    run("from llama_fast import *\nimport llama_fast\nfor name in llama_fast.__all__: eval(name)")


def test_every_public_name_is_that_of_its_module() -> None:
    pytest.importorskip("transformers")
    assert len(set(llama_fast.__all__)) == len(llama_fast.__all__)
    for name in llama_fast.__all__:
        value = getattr(llama_fast, name)
        assert getattr(llama_fast, name) is value
        assert (
            name in ("__version__", "AutoModelForCausalLM")
            or inspect.ismodule(value)
            or (value.__module__.startswith("llama_fast.") and value.__name__ == name)
        ), name


def test_dir_lists_every_public_name() -> None:
    out = run("import llama_fast; print(*dir(llama_fast))").split()
    assert {*llama_fast.__all__, "data", "eval", "info", "ops", "train"} <= set(out)


@pytest.mark.parametrize("package", ["llama_fast", "llama_fast.data", "llama_fast.models"])
def test_type_checkers_see_the_names_that_are_lazy(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    imported = {
        alias.asname or alias.name: f"{package if node.level else ''}.{node.module}".lstrip(".")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(module.__all__) <= imported.keys()
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.ismodule(value):
            assert value is getattr(importlib.import_module(imported[name]), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'llama_fast' has no attribute 'atention'"):
        _ = llama_fast.atention
    assert not hasattr(llama_fast.models, "lod")
    with pytest.raises(ImportError, match="cannot import name 'atention'"):
        from llama_fast import atention  # noqa: F401


def test_an_import_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lazy_package_for_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "part.py").write_text("import no_such_package_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = importlib.import_module(folder.name)
    get_attribute, _ = lazy_attributes(folder.name, {f"{folder.name}.part": ("value",)})
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        get_attribute("value")
    (folder / "part.py").write_text("value = 'here at last'")
    importlib.invalidate_caches()
    assert get_attribute("value") == "here at last" == package.value  # type: ignore[attr-defined]


def test_lazy_names_are_copied_and_pickled() -> None:
    for value in (llama_fast.Trainer, llama_fast.evaluate, llama_fast.flash_attn_func):
        assert pickle.loads(pickle.dumps(value)) is value is copy.deepcopy(value)


def test_a_lazy_name_is_used_first_in_a_compiled_function() -> None:
    run(
        "import torch, llama_fast\n"
        "q = torch.randn(1, 8, 2, 16)\n"
        "f = torch.compile(lambda q: llama_fast.flash_attn_func(q, q, q), backend='eager')\n"
        "assert 'flash_attn_func' not in vars(llama_fast)\n"
        "torch.testing.assert_close(f(q), llama_fast.flash_attn_func(q, q, q))\n"
    )


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/usr/bin/llama-fast", "info"], ["python", "/usr/bin/llama-fast", "info"], True),
        (["-m", "info"], ["python", "-m", "llama_fast", "info"], True),
        (["-m"], ["python", "-X", "utf8", "-Im", "llama_fast"], True),
        (["-m", "x"], ["python", "-mllama_fast", "x"], True),
        (["-m", "llama_fast"], ["python", "-m", "pytest", "llama_fast"], False),
        (["-m"], ["python", "-m", "llama_fast.info"], False),
        (["-c", "llama-fast"], ["python", "-c", "import llama_fast", "llama-fast"], False),
        (["train.py", "llama-fast"], ["python", "train.py", "llama-fast"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_which_process_is_the_command(
    argv: list[str], orig_argv: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert is_command() is expected
