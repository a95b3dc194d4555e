"""Checks the environment variables that the package reads when it runs.

| variable                | value                                       | read by                |
|-------------------------|---------------------------------------------|------------------------|
| LLAMA_FAST_AUTOTUNE     | 0 or 1                                      | kernels/_launch.py     |
| LLAMA_FAST_BACKEND      | a backend, or OP=BACKEND,...                | ops/backends/choice.py |
| LLAMA_FAST_CACHE        | a folder                                    | data/fetch.py          |
| LLAMA_FAST_CACHE_MB     | a number of MiB                             | the compiled library   |
| LLAMA_FAST_DEBUG        | 0 or 1                                      | cli/main.py            |
| LLAMA_FAST_EMULATE_CUDA | 0, 1 or the number of an architecture (90)  | ops/backends/cuda.py   |
| LLAMA_FAST_ISA          | an instruction set                          | the compiled library   |
| LLAMA_FAST_LIBRARY      | a file                                      | ops/backends/library   |
| LLAMA_FAST_LIMITS       | NAME=VALUE,...                              | _limits.py             |

Importing the ops checks LLAMA_FAST_BACKEND and LLAMA_FAST_ISA, and warns if there is no library.
"""

from __future__ import annotations

import os

from llama_fast._limits import check_variable

__all__ = ["check_environment"]

_SWITCHES = ("LLAMA_FAST_AUTOTUNE", "LLAMA_FAST_DEBUG")
_NUMBERS = {
    "LLAMA_FAST_CACHE_MB": "a whole number of MiB",
    "LLAMA_FAST_EMULATE_CUDA": "0, 1 or the number of an architecture, such as 90",
}


def check_environment() -> None:
    """Raise ValueError for a variable with a wrong value; the message begins with its name."""
    for name in _SWITCHES:
        if (value := os.environ.get(name, "")) not in ("", "0", "1"):
            raise ValueError(f"{name}: expected 0 or 1, got {value!r}")
    for name, expected in _NUMBERS.items():
        value = os.environ.get(name, "0")
        if value and not (value.isascii() and value.isdigit()):
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    check_variable()
