"""What cannot be built is told by pip itself, without -v, and later by the installed package."""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import build_report
from tests.build.tree import KERNEL, ROOT, Tree

BROKEN = KERNEL + "this is not C++\n"
PIP = [sys.executable, "-m", "pip"]
OPTIONS = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]


def environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("LLAMA_FAST")}, **more}


def pip_wheel(tree: Tree, **more: str) -> list[str]:
    command = [*PIP, "wheel", ".", *OPTIONS, "--wheel-dir", "out"]
    return ["env", *(f"{name}={value}" for name, value in more.items()), *command]


def output_of(command: list[str], folder: Path, where: str) -> str:
    """What a command writes to a pipe, a log file or a terminal."""
    options: dict[str, Any] = {"cwd": folder, "env": environment(), "check": True}
    if where == "pipe":
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return str(subprocess.run(command, text=True, **both, **options).stdout)
    if where == "file":
        with open(folder / "log", "w") as log:
            subprocess.run(command, stdout=log, stderr=log, **options)
        return (folder / "log").read_text()
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=theirs, stderr=theirs):
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # the other end is closed
            while True:
                parts.append(os.read(ours, 4096))
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


def shares_descriptors() -> bool:
    """Whether a process may take a descriptor of its parent, as a container can forbid."""
    code = "import os, build_report; build_report._shared_descriptor(os.getppid(), 2)"
    return (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose way past pip it is")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("where", ["pipe", "file", "terminal"])
def test_pip_says_what_was_not_built(where: str, tree: Tree) -> None:
    if where == "file" and not shares_descriptors():
        pytest.skip("needs Linux that lets a process use a descriptor of its parent")
    tree.write("cpu/kernel.cpp", BROKEN)
    output = output_of(pip_wheel(tree), tree.root, where)
    assert "WARNING: llama_fast was built without: ops library.\n  ops library: " in output
    where_it_is = f"kernel.cpp:{BROKEN.count(chr(10))}:1: error: "
    assert where_it_is in output and "LLAMA_FAST_BUILD=1" in output
    # Nothing is overwritten, and what pip prints of a build is less than it compiles.
    after = output[output.index("WARNING: llama_fast") :]
    assert "Successfully built llama_fast" in after and len(after.splitlines()) < 15
    assert "ninja" not in output


@pytest.mark.usefixtures("compiler")
def test_pip_says_nothing_of_what_nobody_misses(tree: Tree) -> None:
    for more in ({}, {"LLAMA_FAST_BUILD": "0"}):
        output = output_of(pip_wheel(tree, **more), tree.root, "pipe")
        assert "Successfully built" in output and "WARNING: llama_fast" not in output


def test_a_build_whose_output_is_seen_is_not_told_twice(tree: Tree) -> None:
    assert "WARNING" not in tree.build(CXX="no-such-compiler")


def test_parts_with_one_reason_share_a_line() -> None:
    text = build_report.notice({"ops library": "no C++ compiler", "CUDA": "no C++ compiler"})
    assert "without: ops library, CUDA.\n  ops library, CUDA: no C++ compiler\n" in text
    assert "On CPUs" in text
    assert "On CPUs" not in build_report.notice({"CUDA": "no CUDA toolkit found"})


@pytest.mark.slow
def test_a_plain_install_without_a_compiler_falls_back(tmp_path: Path) -> None:
    """The install succeeds; the import warns once, and `info` says why and how to try again."""
    source, site = tmp_path / "a source", tmp_path / "site"
    ignore = shutil.ignore_patterns("build", ".git", ".venv", "tests", "docs", "results", "*.so")
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [
        "env",
        "CXX=/bin/false",
        *PIP,
        "install",
        str(source),
        *OPTIONS,
        "--target",
        str(site),
    ]
    reason = "/bin/false --version fails: exit code 1"
    assert reason in output_of(command, tmp_path, "pipe")
    script = f"""
import json, sys, warnings
sys.path.insert(0, {str(site)!r})
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import llama_fast, torch
    from llama_fast import info
    q = torch.randn(1, 2, 3, 8)
    llama_fast.attention(q, q, q)
    llama_fast.attention(q, q, q)
ours = [str(w.message) for w in seen if "llama_fast" in str(w.message)]
print(json.dumps([llama_fast.__file__, ours, info.collect(), info.as_text(info.collect())]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    file, seen, facts, text = json.loads(run.stdout)
    assert Path(file).is_relative_to(site)
    (warning,) = seen
    retry = f"LLAMA_FAST_BUILD=1 pip install --force-reinstall --no-deps '{source}'"
    assert f"was not built: {reason}" in warning and warning.endswith(retry)
    assert facts["build"]["ops library"] == f"not built: {reason}"
    assert facts["build"]["to build again"] == retry
    assert reason in text and retry in text
