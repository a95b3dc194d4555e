"""The tokenizer that token shards were written with."""

from __future__ import annotations

from llama_fast.data.documents import DataError
from llama_fast.data.shards import TokenShards, sha256_of
from llama_fast.tokenizers import Tokenizer, load_tokenizer, tokenizer_file


def tokenizer_of(shards: TokenShards) -> Tokenizer:
    """Load the tokenizer that the shards' index names.

    Raises:
        DataError: the index names none, it is gone, or it is another one by now.
    """
    name = shards.tokenizer.get("path")
    if not isinstance(name, str):
        raise DataError(f"{shards.folder}: expected the path of a tokenizer in its index, got none")
    if name == "byte":
        return load_tokenizer(name)
    path = shards.folder / name  # an absolute path stays as it is
    if not path.exists():
        raise DataError(f"{shards.folder}: its tokenizer is gone: {path}")
    expected = shards.tokenizer.get("sha256")
    if expected is not None and sha256_of(tokenizer_file(path)) != expected:
        raise DataError(f"{path}: expected the tokenizer of {shards.folder}, it was changed since")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != shards.vocab_size:
        raise DataError(
            f"{path}: expected the {shards.vocab_size} tokens of {shards.folder}, got "
            f"{tokenizer.vocab_size}"
        )
    return tokenizer
