"""Repositories of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["locate"]

# What of a hub's repository is fetched. None of it is Python, and weights are safetensors, which
# hold no code; templates run in a sandbox. config.json may name Python (`auto_map`), see `_CODE`.
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_CODE = "*.py"  # fetched and run only if the user says so
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(source: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Path:
    """The file or folder itself, or the folder that the hub's model of that name was fetched to.

    Args:
        source: path or name.
        trust_remote_code: fetch the repository's Python as well.

    Raises:
        FileNotFoundError: neither is there.
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
    except Exception as error:  # the hub's client has a dozen classes of them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"model: {name} is no file or folder, and the hub does not give it: {reason}"
        ) from None
