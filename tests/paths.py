"""Where the tests find data that is not in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_fast.data.fetch import FetchError, benchmark_path, smollm2_path

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LLAMA_FAST_TEST_DATA") or REPOSITORY.parent / "shared" / "data")


def shared_data(relative: str) -> Path:
    """A file or folder of the test data; skips the test where it is absent."""
    path = DATA / relative
    if not path.exists():
        pytest.skip(f"no {path}: set LLAMA_FAST_TEST_DATA to the folder with the test data")
    return path


def smollm2() -> Path:
    """The SmolLM2-135M-Instruct GGUF file; skips the test where it can't be had."""
    try:
        return smollm2_path()
    except FetchError as error:
        pytest.skip(f"SmolLM2 is not in the cache and can't be fetched: {error}")


def benchmark_data() -> Path:
    """The folder with the benchmark package; skips the test where it can't be had."""
    try:
        return benchmark_path()
    except FetchError as error:
        pytest.skip(f"the benchmark data are not in the cache and can't be fetched: {error}")
