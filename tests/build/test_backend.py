"""The PEP 517 backend asks for torch exactly when the build would find none that will do."""

import sysconfig
from pathlib import Path

import pytest

import build_backend


def test_installed_torch_is_used() -> None:
    import torch

    assert build_backend.torch_directory() == Path(torch.__file__).parent
    facts = build_backend.torch_facts(Path(torch.__file__).parent)
    assert facts["__version__"] == torch.__version__
    assert not any("torch" in r for r in build_backend.get_requires_for_build_wheel())


def test_torch_is_found_where_an_isolated_build_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.11.0'\ncuda = None\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert build_backend.torch_directory() == tmp_path / "torch"
    assert build_backend._torch_requirement() == []


@pytest.mark.parametrize("version", [None, "2.9.1"], ids=["none", "too old"])
def test_torch_is_required_where_none_will_do(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("site.ENABLE_USER_SITE", False)
    monkeypatch.delenv("LLAMA_FAST_BUILD", raising=False)
    if version:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    assert build_backend._torch_requirement() == ["torch>=2.10"]
    monkeypatch.setenv("LLAMA_FAST_BUILD", "0")
    assert build_backend._torch_requirement() == []


@pytest.mark.parametrize(
    ("version", "recent"),
    [("2.10.0", True), ("2.9.1", False), ("2.13.0+cpu", True), ("3.0.0a0+git1", True)],
)
def test_versions_are_compared_as_numbers(version: str, recent: bool) -> None:
    assert build_backend.is_recent(version) is recent
