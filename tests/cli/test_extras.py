"""The command line with what a plain installation brings: no extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_fast import _extras
from tests.build.dependencies import EXACT, ROOT, canonical, extras

# Modules of a distribution that are not called as it is.
MODULES = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which nothing that an extra installs can be imported."""
    listed = {r.name for e, rs in extras().items() if e and e not in EXACT for r in rs}
    names = {
        MODULES.get(canonical(name), name.replace("-", "_")) for name in listed - {"llama_fast"}
    }
    folder = tmp_path_factory.mktemp("no_extras")
    absent = sorted(names - {"setuptools"})
    text = f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
    (folder / "sitecustomize.py").write_text(text)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLUMNS": "100"}


def run(environment: dict[str, str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "llama_fast", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_info_and_help_need_no_extra(environment: dict[str, str], tmp_path: Path) -> None:
    code, out, _ = run(environment, tmp_path, "info")
    assert code == 0 and "versions" in out
    code, out, _ = run(environment, tmp_path, "--help")
    assert code == 0 and out.startswith("usage: llama-fast")


@pytest.mark.parametrize(
    ("arguments", "lacking", "extra"),
    [
        (["bench"], "matplotlib, rich", "bench"),
        (["plan", "config.yaml"], "jsonargparse, yaml", "train"),
        (["train", "config.yaml"], "jsonargparse, yaml", "train"),
        (["plot", "run"], "matplotlib", "train"),
        (["data", "check", "shards"], "rich", "train"),
        (["demo"], "gguf, matplotlib, pyarrow, rich, tokenizers", "demo"),
        (["eval", "model"], "datasets, evaluate, lm_eval, rich, transformers", "eval"),
        (["eval", "compare", "a", "b"], "rich", "eval"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_command_names_the_extra_that_it_needs(
    arguments: list[str], lacking: str, extra: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    command = " ".join(a for a in arguments if a.isalpha() and a not in ("run", "shards", "model"))
    command = command.removesuffix(" a b")
    code, out, err = run(environment, tmp_path, *arguments)
    verb = "are" if "," in lacking else "is"
    assert err == (
        f"llama-fast: error: llama-fast {command} needs {lacking}, which {verb} not installed: "
        f"pip install 'llama_fast[{extra}]'\n"
    )
    assert (code, out) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", r"such tokenizers need the tokenizers package"),
        ("tokenizer.model", r"SentencePiece tokenizers need the sentencepiece package"),
        ("model.gguf", r"GGUF files need the gguf package"),
    ],
)
def test_a_file_names_the_extra_that_it_needs(
    name: str, message: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"\n\x07" if name.endswith("model") else b"{}")
    code = f"import llama_fast.tokenizers as t\nt.load_tokenizer({str(tmp_path / name)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(f"{message}: pip install 'llama_fast[checkpoints]'"), done.stderr


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "PatchCallback"])
def test_a_public_name_names_the_extra_that_it_needs(
    name: str, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from llama_fast import {name}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip().endswith(
        "ImportError: models of transformers need the transformers package: "
        "pip install 'llama_fast[patch]'"
    )


def test_require() -> None:
    _extras.require("a test", "train", "json", "os.path")
    with pytest.raises(ImportError, match=r"^a test needs no_such_a, no_such_b, which are not"):
        _extras.require("a test", "train", "no_such_a", "json", "no_such_b")
