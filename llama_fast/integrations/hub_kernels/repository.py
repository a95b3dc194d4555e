"""Writes a kernel repository that can be uploaded to the Hugging Face Hub.

The layout is that of the Hub's kernel-builder: it builds from `build.toml` and `torch-ext/`, and
`kernels` downloads `build/<variant>/`. A kernel without compiled code of its own is the same in all
variants. `kernels` chooses one by the build of torch, not by the device of the model, so models on
a CPU need one for each build of torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from llama_fast._version import __version__
from llama_fast._write import partial_name
from llama_fast.integrations.hub_kernels.registration import ATTENTION, KERNEL

BACKENDS = ("cpu", "cuda", "rocm", "xpu")
_NAMES = {"build", "build.toml", "CARD.md", "flake.lock", "flake.nix", "README.md", "torch-ext"}

_BUILD = """\
[general]
name = "{name}"
version = {version}
edition = 5
license = "{license}"
backends = [{backends}]

[general.hub]
repo-id = "{repo_id}"

[torch-noarch]
"""
_FLAKE = """\
{
  description = "llama_fast for the kernels package";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""
_CARD = """\
---
license: apache-2.0
library_name: kernels
tags:
- kernels
---

# llama_fast for the kernels package

RMSNorm, rotary position embedding, gated MLPs, cross-entropy and attention of
[llama_fast](https://pypi.org/project/llama-fast/) {release} as layers and functions for `kernels`.
The operators are in that package, which has to be installed: `pip install llama_fast`.

```python
from kernels import LayerRepository, Mode, use_kernel_mapping

norm = LayerRepository("{repo_id}", layer_name="RMSNorm", version={version}, trust_remote_code=True)
with use_kernel_mapping({{"RMSNorm": {{"cpu": {{Mode.TRAINING | Mode.TORCH_COMPILE: norm}}}}}}):
    model.set_use_kernels(True)
```

With `attn_implementation="{repo_id}", allow_all_kernels=True` a model gets the attention.
"""


def write_repository(folder: Path, repo_id: str = ATTENTION, *, force: bool = False) -> list[Path]:
    """Write a kernel repository.

    Args:
        folder: the new folder.
        repo_id: name on the Hub, ``owner/name``.
        force: replace the folder if it is a kernel repository.

    Returns:
        The files, relative to `folder`, sorted.

    Raises:
        ValueError: `repo_id` has another form, or with `force` the folder is something else.
        FileExistsError: the folder exists.
        OSError: it cannot be written; an existing one is unchanged.
    """
    if not is_repo_id(repo_id):
        raise ValueError(f"repo_id: expected owner/name, got {repo_id!r}")
    if folder.exists() and not force:
        raise FileExistsError(f"folder: {folder} exists")
    if folder.exists() and not is_repository(folder):
        raise ValueError(f"folder: expected a kernel repository, got {folder}")
    metadata = json.loads((KERNEL / "metadata.json").read_text("utf-8"))
    new = partial_name(folder)
    try:
        _write_files(new, metadata, repo_id)
        if folder.exists():
            old = partial_name(folder)
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def is_repo_id(text: str) -> bool:
    """Whether a text has the form ``owner/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII) is not None


def is_repository(folder: Path) -> bool:
    """Whether a folder contains what :func:`write_repository` writes, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "build.toml" in names and names <= _NAMES


def _write_files(folder: Path, metadata: dict[str, Any], repo_id: str) -> None:
    source = (KERNEL / "__init__.py").read_text("utf-8")
    module = metadata["name"].replace("-", "_")
    facts = {
        "name": metadata["name"],
        "version": metadata["version"],
        "license": metadata["license"],
        "backends": ", ".join(f'"{backend}"' for backend in BACKENDS),
        "repo_id": repo_id,
        "release": __version__,
    }
    _write(folder / "build.toml", _BUILD.format(**facts))
    _write(folder / "flake.nix", _FLAKE)
    for card in ("CARD.md", "README.md"):  # kernel-builder reads the one, the Hub shows the other
        _write(folder / card, _CARD.format(**facts))
    _write(folder / "torch-ext" / module / "__init__.py", source)
    for backend in BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        files = {"__init__.py": source, f"{module}/__init__.py": source}
        for name, text in files.items():
            _write(variant / name, text)
        unique = hashlib.sha256((source + __version__).encode()).hexdigest()[:8]
        built = {
            **metadata,
            "id": f"_{module}_{backend}_{unique}",
            "backend": {"type": backend},
            "digest": {
                "algorithm": "sha256",
                "files": {name: _digest(text) for name, text in files.items()},
            },
        }
        _write(variant / "metadata.json", json.dumps(built, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
