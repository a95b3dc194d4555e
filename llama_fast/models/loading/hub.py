"""Repositories of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["locate"]

# The files that are fetched from a repository. None is Python code, weights are safetensors, which
# hold no code, and templates run in a sandbox. config.json may name code (`auto_map`), see `_CODE`.
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_CODE = "*.py"  # fetched and run only with trust_remote_code
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(source: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Path:
    """Return a local path as it is, or the folder to which the hub's model was downloaded.

    Args:
        source: path of a file or folder, or name of a repository on the hub.
        trust_remote_code: whether to download the repository's Python code, too.

    Raises:
        FileNotFoundError: there is neither such a path nor such a repository.
    """
    path = Path(source)
    return path if path.exists() else _from_hub(str(source), trust_remote_code)


def _from_hub(name: str, trust_remote_code: bool) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"model: no such file or folder: {name}")
    from huggingface_hub import snapshot_download

    try:
        files = [*_FILES, _CODE] if trust_remote_code else _FILES
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the hub's client has a dozen exception classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"model: {name} is no file or folder, and the hub does not give it: {reason}"
        ) from None
