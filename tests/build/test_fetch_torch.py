"""Headers and libraries of another torch: what is unpacked of its wheel, and what is refused."""

import zipfile
from pathlib import Path

import pytest

import build_backend
import build_native
import fetch_torch

PARTS = ("version.py", "include/c10/macros/Macros.h", *(f"lib/{n}" for n in fetch_torch.LIBRARIES))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which alone pip looks for wheels; builds go beside it."""
    (tmp_path / "wheels").mkdir()
    for name in ("PIP_CONSTRAINT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(fetch_torch, "ROOT", tmp_path)
    return tmp_path / "wheels"


def make_wheel(folder: Path, version: str, tag: str, parts: tuple[str, ...] = PARTS) -> None:
    with zipfile.ZipFile(folder / f"torch-{version}-{tag}.whl", "w") as wheel:
        for part in (*parts, "nn/functional.py", "lib/libtorch_cuda.so"):
            wheel.writestr(f"torch/{part}", f"__version__ = {version!r}\ncuda = None\n")
        info = f"torch-{version}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_what_a_build_needs_is_unpacked_once(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "2.10.0", "py3-none-any")
    torch = fetch_torch.fetch()
    assert torch == tmp_path / "build" / "torch-2.10.0" / "torch"
    unpacked = {str(f.relative_to(torch)) for f in torch.rglob("*") if f.is_file()}
    assert unpacked == set(PARTS)
    assert [f.name for f in (tmp_path / "build").iterdir()] == ["torch-2.10.0"]

    (wheels / "torch-2.10.0-py3-none-any.whl").unlink()
    assert fetch_torch.fetch() == torch  # and no wheel to be had

    monkeypatch.setenv("LLAMA_FAST_TORCH", str(torch))
    assert build_native.find_torch() == (torch, "2.10.0", None)


def test_another_processor_has_a_folder_of_its_own(wheels: Path, tmp_path: Path) -> None:
    for processor in ("x86_64", "aarch64"):
        make_wheel(wheels, "2.11.0", f"cp312-cp312-manylinux_2_28_{processor}")
    torch = fetch_torch.fetch("2.11.0", "manylinux_2_28_aarch64", "3.12")
    assert torch == tmp_path / "build" / "torch-2.11.0-manylinux_2_28_aarch64" / "torch"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, r"pip could not download torch 2\.11\.0"),
        (PARTS[:-1], r"the wheel of torch 2\.11\.0 lacks one of .*libc10\.so"),
    ],
    ids=["no wheel", "a part is missing"],
)
def test_failure_leaves_nothing(
    parts: tuple[str, ...] | None, message: str, wheels: Path, tmp_path: Path
) -> None:
    if parts:
        make_wheel(wheels, "2.11.0", "py3-none-any", parts)
    with pytest.raises(fetch_torch.CannotFetch, match=message):
        fetch_torch.fetch("2.11.0")
    assert list((tmp_path / "build").iterdir()) == []


def test_a_folder_that_is_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "include").mkdir()
    monkeypatch.setenv("LLAMA_FAST_TORCH", str(tmp_path))
    message = rf"LLAMA_FAST_TORCH={tmp_path}: expected .*, found no version\.py, lib in it"
    with pytest.raises(build_backend.NotATorch, match=message):
        build_backend.torch_directory()
    with pytest.raises(build_native.CannotBuild, match=message):
        build_native.find_torch()
