"""The build on a small source tree with the real setup.py: what it makes, skips and reports."""

import ctypes
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch  # (the library links against torch's, which have to be loaded first)

from build_backend import MINIMUM_TORCH
from tests.build.tree import CUDA_KERNEL, HEADER, KERNEL, ROOT, Tree


@pytest.mark.usefixtures("compiler")
def test_builds_every_instruction_set(tree: Tree) -> None:
    table = tree.build()
    library = ctypes.CDLL(str(tree.library))
    expected = 1
    if platform.machine() == "x86_64":
        names = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
        values = (10, 100, 1000, 10000)
        expected += sum(v for n, v in zip(names, values, strict=True) if n in table)
        assert "avx2" in table
    if platform.machine() == "aarch64":
        expected += 10 if "neon_bf16" in table else 0
    assert library.llama_fast_sum_of_kernels() == expected
    assert library.llama_fast_cpu_device() == 0  # a symbol of torch's, found without a run path
    assert tree.part("CUDA") == (False, "no CUDA sources")
    for name in ("ops library", "CUDA"):
        assert sum(line.startswith(f"  {name} ") for line in table.splitlines()) == 1


@pytest.mark.usefixtures("compiler")
def test_cross_compiling_needs_a_torch_for_that_processor(tree: Tree) -> None:
    other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    compiler = next(name for name in ("g++", "clang++", "c++") if shutil.which(name))
    tree.build(LLAMA_FAST_TARGET=other, CXX=compiler)
    built, why = tree.part("ops library")
    assert not built and f"LLAMA_FAST_TARGET={other}" in why and "LLAMA_FAST_TORCH" in why


@pytest.mark.usefixtures("compiler")
def test_second_build_compiles_only_what_changed(tree: Tree) -> None:
    tree.build()
    objects = tree.root / "build" / "native"
    before = {p.name: p.stat().st_mtime_ns for p in objects.glob("*.o")}
    assert "ninja: no work to do" in tree.build()
    tree.write("cpu/kernel.h", HEADER + "// one more line\n")
    tree.build()
    changed = {n for n, t in before.items() if (objects / n).stat().st_mtime_ns != t}
    assert changed == {n for n in before if n.startswith("cpu_")}


@pytest.mark.usefixtures("compiler")
def test_library_is_replaced_in_one_step(tree: Tree) -> None:
    tree.build()
    with open(tree.library, "rb") as held:  # as a running process holds it
        before = held.read()
        tree.write("cpu/kernel.cpp", KERNEL.replace("return 1;", "return 2;"))
        tree.build()
        held.seek(0)
        assert held.read() == before
    assert tree.library.read_bytes() != before
    assert not [p for p in tree.library.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.usefixtures("compiler")
def test_broken_source_leaves_no_old_library_behind(tree: Tree) -> None:
    tree.build()
    tree.write("cpu/kernel.cpp", KERNEL + "this is not C++\n")
    table = tree.build()
    built, why = tree.part("ops library")
    assert not built and "kernel.cpp" in why and "error:" in why
    assert why in table and not tree.library.exists()
    strict = tree.build(expect=1, LLAMA_FAST_BUILD="1")
    assert "could not build: ops library" in strict and f"\n  ops library: {why}" in strict


def test_without_a_compiler_the_build_succeeds_and_says_why(tree: Tree) -> None:
    table = tree.build(CXX="no-such-compiler")
    built, why = tree.part("ops library")
    assert not built and "no-such-compiler" in why and why in table
    assert not tree.library.exists()
    tree.build(expect=1, CXX="no-such-compiler", LLAMA_FAST_BUILD="1")


def without_ninja(folder: Path) -> dict[str, str]:
    """An environment with a compiler and no ninja."""
    (folder / "ninja.py").write_text("raise ImportError")
    # Not ccache under the compiler's name: it looks for the compiler on the PATH.
    found = (shutil.which("g++", path=place) for place in os.environ["PATH"].split(os.pathsep))
    (folder / "g++").symlink_to(
        next((g for g in found if g and "ccache" not in os.path.realpath(g)), "g++")
    )
    return {"PYTHONPATH": str(folder), "PATH": str(folder), "CXX": "g++"}


def with_torch(folder: Path, version: str) -> dict[str, str]:
    """An environment whose torch has this version."""
    for part in ("include", "lib"):
        (folder / part).mkdir()
    (folder / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    return {"LLAMA_FAST_TORCH": str(folder)}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        (lambda folder: {"CXX": "false"}, "false --version fails: exit code 1"),
        (without_ninja, "ninja not found (pip install ninja)"),
        (lambda folder: with_torch(folder, "2.9.1"), "expected torch 2.10 or later, found 2.9.1"),
    ],
    ids=["compiler that fails", "no ninja", "old torch"],
)
def test_what_the_build_lacks_is_recorded(
    lacking: Callable[[Path], dict[str, str]], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tools").mkdir()
    tree = Tree(tmp_path / "tree")
    environment = lacking(tmp_path / "tools")
    assert reason in tree.build(**environment)
    assert tree.part("ops library") == (False, reason)
    assert reason in tree.build(expect=1, LLAMA_FAST_BUILD="1", **environment)


def test_build_can_be_switched_off(tree: Tree) -> None:
    tree.build(LLAMA_FAST_BUILD="0")
    assert tree.part("ops library") == (False, "LLAMA_FAST_BUILD=0")
    assert not (tree.root / "build" / "native").exists()


@pytest.mark.usefixtures("compiler")
def test_sanitizer_build_stands_apart(tree: Tree) -> None:
    tree.build(LLAMA_FAST_SANITIZE="1")
    library = tree.root / "build" / "sanitize" / "libllama_fast.so"
    assert b"__asan_init" in library.read_bytes()
    assert b"__ubsan_handle" in library.read_bytes()
    assert not tree.library.exists()


@pytest.mark.usefixtures("compiler")
def test_cuda_is_left_out_with_a_reason(tree: Tree) -> None:
    tree.write("cuda/add.cu", CUDA_KERNEL)
    tree.build(LLAMA_FAST_CUDA="0")
    assert tree.part("CUDA") == (False, "LLAMA_FAST_CUDA=0")
    if torch.version.cuda is None:
        tree.build()
        assert "torch was built without CUDA" in tree.part("CUDA")[1]
    assert tree.part("ops library")[0]


needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")), reason="needs nvcc"
)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_cuda_sources_are_compiled_into_the_library(tree: Tree) -> None:
    tree.write("cuda/add.cu", CUDA_KERNEL)
    tree.build(LLAMA_FAST_CUDA="1", LLAMA_FAST_BUILD="1")
    built, detail = tree.part("CUDA")
    assert built and "sm_80" in detail
    assert ctypes.CDLL(str(tree.library)).llama_fast_launch  # loads without a GPU, too
    assert b"add_one" in tree.library.read_bytes()
    tree.build(LLAMA_FAST_CUDA="1", LLAMA_FAST_BUILD="1", LLAMA_FAST_CUDA_ARCHS="9.0a; sm_80+PTX")
    assert tree.part("CUDA")[1].endswith(": sm_90a, sm_80+PTX")
    assert tree.part("ops library")[0]


@needs_nvcc
@pytest.mark.usefixtures("compiler")
def test_cuda_source_that_fails_does_not_cost_the_cpu_kernels(tree: Tree) -> None:
    tree.write("cuda/add.cu", "this is not CUDA\n")
    tree.build(LLAMA_FAST_CUDA="1")
    built, why = tree.part("CUDA")
    assert not built and "add.cu" in why
    assert (
        tree.part("ops library")[0]
        and ctypes.CDLL(str(tree.library)).llama_fast_sum_of_kernels() > 0
    )
    assert "could not build: CUDA" in tree.build(
        expect=1, LLAMA_FAST_CUDA="1", LLAMA_FAST_BUILD="1"
    )


def test_the_oldest_torch_is_the_same_for_the_package_and_its_build() -> None:
    """`MINIMUM_TORCH` is also what TORCH_TARGET_VERSION is made of."""
    oldest = ".".join(map(str, MINIMUM_TORCH))
    assert f'"torch>={oldest}"' in (ROOT / "pyproject.toml").read_text()
