"""What of the kernel repository needs no `kernels` package; the rest is in hub_kernels/."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
import transformers.utils
from torch import nn

from llama_fast.cli.main import main
from llama_fast.integrations import kernel_mapping, register_kernels, unregister_kernels
from llama_fast.integrations.hub_kernels import layers
from llama_fast.integrations.hub_kernels.registration import KERNEL


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_kernels_available", lambda: False)
    from transformers.dependency_versions_table import deps

    for call in (register_kernels, kernel_mapping):
        with pytest.raises(ImportError) as caught:
            call()
        assert str(caught.value).startswith(
            f"kernels: expected a version that transformers {transformers.__version__} accepts, got"
        )
        assert f"pip install '{deps['kernels']}'" in str(caught.value)
    unregister_kernels(nn.Linear(2, 2))  # nothing can have been registered


def test_another_folder_of_that_name_is_reported(monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_kernels_available", lambda: True)
    other = type(sys)("kernels")
    other.__file__ = "/somewhere/kernels/__init__.py"
    monkeypatch.setitem(sys.modules, "kernels", other)
    with pytest.raises(ImportError, match=r"got /somewhere/kernels/__init__.py, which comes"):
        register_kernels()


@pytest.mark.parametrize("name", layers.__all__)
def test_layers_are_what_the_package_accepts(name):
    """No constructor and no members of their own but the two flags."""
    layer = getattr(layers, name)
    assert layer.__init__ is nn.Module.__init__
    own = {member for member, _ in inspect.getmembers(layer)}
    own -= {member for member, _ in inspect.getmembers(nn.Module)}
    assert own <= {"can_torch_compile", "has_backward"}
    assert layer.can_torch_compile and layer.has_backward


def test_the_kernel_without_the_package_says_what_to_install():
    code = (
        "import runpy, sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'llama_fast':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name='llama_fast')\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"runpy.run_path({str(KERNEL / '__init__.py')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is not installed: pip install llama_fast" in done.stderr.splitlines()[-1]


def test_export_kernels(tmp_path: Path, capsys):
    folder = tmp_path / "layers"
    assert main(["export-kernels", "--out", str(folder), "--repo-id", "someone/layers"]) == 0
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(str(p) for p in folder.rglob("*") if p.is_file())
    assert 'repo-id = "someone/layers"' in (folder / "build.toml").read_text()
    source = (KERNEL / "__init__.py").read_text()
    ids = set()
    for variant in (folder / "build").iterdir():
        metadata = json.loads((variant / "metadata.json").read_text())
        assert f"torch-{metadata['backend']['type']}" == variant.name
        assert (variant / "__init__.py").read_text() == source
        ids.add(metadata["id"])
    assert len(ids) == 4 and all(name.isidentifier() for name in ids)
    (folder / "README.md").write_text("old")
    assert main(["export-kernels", "--out", str(folder)]) == 2
    assert main(["export-kernels", "--out", str(folder), "--force"]) == 0
    assert "old" not in (folder / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["layers"]


@pytest.mark.parametrize("contents", [["build.toml", "notes.txt"], ["notes.txt"], []])
def test_force_replaces_nothing_else(tmp_path: Path, capsys, contents):
    for name in contents:
        (tmp_path / name).write_text("mine")
    assert main(["export-kernels", "--out", str(tmp_path), "--force"]) == 2
    assert "--out: expected a kernel repository" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(contents)


def test_a_wrong_name_of_a_repository(tmp_path: Path, capsys):
    command = ["export-kernels", "--out", str(tmp_path / "new"), "--repo-id", "layers"]
    assert main(command) == 2
    assert "--repo-id: expected OWNER/NAME, got 'layers'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
