"""LLAMA_FAST_CUDA_ARCHS: its spellings, and what is said of values that are no good."""

from pathlib import Path

import pytest

import build_cuda
from build_backend import BadSetting, CannotBuild
from tests.build.tree import Tree

NVCC_13 = (75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121)
NVCC_12_4 = (50, 60, 70, 75, 80, 86, 87, 89, 90)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_FAST_CUDA_ARCHS", raising=False)


def make_nvcc(folder: Path, *numbers: int) -> Path:
    """A program that answers `--list-gpu-arch` as nvcc does."""
    nvcc = folder / "nvcc"
    lines = "\n".join(f"compute_{number}" for number in numbers)
    nvcc.write_text(f"#!/bin/sh\ncat <<END\n{lines}\nEND\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("80;90a", ["80", "90a"]),
        ("80, 90a 100", ["80", "90a", "100"]),
        ("8.0;9.0a;10.0+PTX", ["80", "90a", "100+PTX"]),
        ("sm_80,compute_120F+ptx;", ["80", "120f+PTX"]),
        ("80;8.0", ["80"]),
        ("", None),
        (" ; ", None),
    ],
)
def test_spellings(value: str, names: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FAST_CUDA_ARCHS", value)
    assert build_cuda.wanted_architectures() == names


@pytest.mark.parametrize(
    ("known", "chosen"), [(NVCC_13, ["80", "90a", "100"]), (NVCC_12_4, ["80", "90a"])]
)
def test_default_is_what_nvcc_knows_of_three(
    known: tuple[int, ...], chosen: list[str], tmp_path: Path
) -> None:
    assert build_cuda.architectures_for(make_nvcc(tmp_path, *known)) == chosen


def test_an_nvcc_that_is_too_old(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="knows none of sm_80, sm_90a, sm_100"):
        build_cuda.architectures_for(make_nvcc(tmp_path, 50, 60))


@pytest.mark.parametrize("name", ["100", "75", "80a", "90f", "85"])
def test_what_nvcc_cannot_compile_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_FAST_CUDA_ARCHS", f"80;{name}")
    nvcc = make_nvcc(tmp_path, *NVCC_12_4)
    message = (
        rf"LLAMA_FAST_CUDA_ARCHS=80;{name}: .*{nvcc}.* \(80, 86, 87, 89, 90, 90a\), got {name}$"
    )
    with pytest.raises(BadSetting, match=message):
        build_cuda.architectures_for(nvcc)


def test_gencode() -> None:
    assert build_cuda.gencode("90a") == ["-gencode", "arch=compute_90a,code=sm_90a"]
    with_ptx = ["-gencode", "arch=compute_80,code=[sm_80,compute_80]"]
    assert build_cuda.gencode("80+PTX") == with_ptx


@pytest.mark.usefixtures("compiler")
def test_a_misspelled_value_ends_the_build_in_one_line(tree: Tree) -> None:
    output = tree.build(expect=1, LLAMA_FAST_CUDA_ARCHS="8x")
    assert output.splitlines()[-1] == (
        "llama_fast: LLAMA_FAST_CUDA_ARCHS=8x: expected architectures such as 80;90a;100, got '8x'"
    )
    assert "Traceback" not in output
