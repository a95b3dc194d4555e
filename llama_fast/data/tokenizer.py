"""Loads and copies the tokenizer with which token shards were written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llama_fast._inside import inside
from llama_fast._reading import file_sha256
from llama_fast.data.rows import DataError
from llama_fast.data.shards import INDEX, TokenShards
from llama_fast.tokenizers import SETTINGS_FILES, Tokenizer, load_tokenizer, tokenizer_file

FOLDER = "tokenizer"  # subfolder of a shard folder that holds its tokenizer


def tokenizer_of(shards: TokenShards) -> Tokenizer:
    """Load the tokenizer that the shards' index names.

    Raises:
        DataError: the index names no tokenizer, or a file outside the folder without its hash; the
            tokenizer does not exist, or has changed.
    """
    path = _file(shards)
    if path is None:
        return load_tokenizer("byte")
    expected = shards.tokenizer.get("sha256")
    if expected is None and Path(shards.tokenizer["path"]).is_absolute():
        raise DataError(f"{shards.folder / INDEX}: expected the sha256 of {path}, got none")
    if expected is not None and file_sha256(path) != expected:
        raise DataError(f"{path}: expected the tokenizer of {shards.folder}, the file has changed")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != shards.vocab_size:
        raise DataError(
            f"{path}: expected the {shards.vocab_size} tokens of {shards.folder}, got "
            f"{tokenizer.vocab_size}"
        )
    return tokenizer


def copy_tokenizer(shards: TokenShards, folder: Path) -> dict[str, Any]:
    """Copy a tokenizer from the folder of token shards to a folder of new shards.

    Only known files are copied, under fixed names, because an untrusted index may name any file.

    Args:
        shards: the shards whose tokenizer is copied, if it is in their folder.
        folder: folder of the new shards.

    Returns:
        The "tokenizer" entry of the new index.

    Raises:
        DataError: the index names a file outside its folder, or one that does not exist.
    """
    path_in_index = shards.tokenizer.get("path")
    if not isinstance(path_in_index, str) or Path(path_in_index).is_absolute():
        return shards.tokenizer
    path = _file(shards)
    if path is None:
        return shards.tokenizer
    name = {".gguf": "tokenizer.gguf", ".bin": "tok.bin"}.get(path.suffix, FOLDER + path.suffix)
    (folder / FOLDER).mkdir()
    shutil.copyfile(path, folder / FOLDER / name)
    parent = path.parent.relative_to(shards.folder)
    for other in SETTINGS_FILES:
        source = inside(shards.folder, (parent / other).as_posix(), shards.folder, DataError)
        if source.is_file():
            shutil.copyfile(source, folder / FOLDER / other)
    new_path = f"{FOLDER}/{name}" if path.suffix == ".gguf" else FOLDER
    return {**shards.tokenizer, "path": new_path}


def _file(shards: TokenShards) -> Path | None:
    """Path of the tokenizer's file (relative to the shards, if relative); None for bytes."""
    name = shards.tokenizer.get("path")
    if not isinstance(name, str):
        raise DataError(f"{shards.folder}: expected the path of a tokenizer in the index, got none")
    if name == "byte":
        return None
    try:
        path = tokenizer_file(shards.folder / name)  # `/` keeps an absolute `name` as it is
    except FileNotFoundError:
        raise DataError(
            f"{shards.folder}: the tokenizer does not exist: {shards.folder / name}"
        ) from None
    if not Path(name).is_absolute():
        relative = path.relative_to(shards.folder).as_posix()
        inside(shards.folder, relative, shards.folder / INDEX, DataError)
    return path
