"""The tokenizer that token shards were written with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llama_fast._inside import inside
from llama_fast._reading import file_sha256
from llama_fast.data.documents import DataError
from llama_fast.data.shards import INDEX, TokenShards
from llama_fast.tokenizers import SETTINGS, Tokenizer, load_tokenizer, tokenizer_file

FOLDER = "tokenizer"  # of a tokenizer that shards keep beside them


def tokenizer_of(shards: TokenShards) -> Tokenizer:
    """Load the tokenizer that the shards' index names.

    Raises:
        DataError: the index names none, or a file outside the folder whose hash it does not know;
            the tokenizer is gone, or it is another one by now.
    """
    path = _file(shards)
    if path is None:
        return load_tokenizer("byte")
    expected = shards.tokenizer.get("sha256")
    if expected is None and Path(shards.tokenizer["path"]).is_absolute():
        raise DataError(f"{shards.folder / INDEX}: expected the sha256 of {path}, got none")
    if expected is not None and file_sha256(path) != expected:
        raise DataError(f"{path}: expected the tokenizer of {shards.folder}, it was changed since")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != shards.vocab_size:
        raise DataError(
            f"{path}: expected the {shards.vocab_size} tokens of {shards.folder}, got "
            f"{tokenizer.vocab_size}"
        )
    return tokenizer


def keep_tokenizer(shards: TokenShards, folder: Path) -> dict[str, Any]:
    """Put a tokenizer that lies beside the shards into a new folder of shards too.

    Known files alone are copied, to names of our own: an index may name anything.

    Args:
        shards: with the tokenizer.
        folder: of the new shards.

    Returns:
        What the new index says of it.

    Raises:
        DataError: the index names a file outside its folder, or one that is gone.
    """
    named = shards.tokenizer.get("path")
    if not isinstance(named, str) or Path(named).is_absolute():
        return shards.tokenizer
    path = _file(shards)
    if path is None:
        return shards.tokenizer
    name = {".gguf": "tokenizer.gguf", ".bin": "tok.bin"}.get(path.suffix, FOLDER + path.suffix)
    (folder / FOLDER).mkdir()
    shutil.copyfile(path, folder / FOLDER / name)
    beside = path.parent.relative_to(shards.folder)
    for other in SETTINGS:
        source = inside(shards.folder, (beside / other).as_posix(), shards.folder, DataError)
        if source.is_file():
            shutil.copyfile(source, folder / FOLDER / other)
    named = f"{FOLDER}/{name}" if path.suffix == ".gguf" else FOLDER
    return {**shards.tokenizer, "path": named}


def _file(shards: TokenShards) -> Path | None:
    """The tokenizer's file, None for bytes. A relative path is that of a file beside the shards."""
    name = shards.tokenizer.get("path")
    if not isinstance(name, str):
        raise DataError(f"{shards.folder}: expected the path of a tokenizer in its index, got none")
    if name == "byte":
        return None
    try:
        path = tokenizer_file(shards.folder / name)  # an absolute path stays as it is
    except FileNotFoundError:
        raise DataError(f"{shards.folder}: its tokenizer is gone: {shards.folder / name}") from None
    if not Path(name).is_absolute():
        relative = path.relative_to(shards.folder).as_posix()
        inside(shards.folder, relative, shards.folder / INDEX, DataError)
    return path
