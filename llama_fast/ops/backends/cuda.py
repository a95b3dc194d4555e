"""The backend "cuda": which CUDA C++ kernels are available, and on which GPUs "auto" uses them.

They are part of the compiled library (library.py). With LLAMA_FAST_EMULATE_CUDA=1 in the
environment they come from build/emulated instead: the same sources compiled for the CPU, slow, for
tests without a GPU. A number other than 1 is the architecture whose kernels are chosen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llama_fast._build_record import why_not_built
from llama_fast._torch_internals import has_kernel
from llama_fast.ops.backends import library
from llama_fast.ops.backends.table import TABLE, ops_of, serves

# Name of a GPU -> the ops whose CUDA kernels were measured on it to be correct and faster than
# Triton's; the results are under benchmarks/results. On other GPUs they run on request only.
VERIFIED: dict[str, frozenset[str]] = {}
# Operator -> a function of its arguments that returns why its kernel cannot take them, or None.
# "auto" then uses Triton's kernel. A kernel without such a function takes all dtypes of the table.
REFUSALS: dict[str, Callable[..., str | None]] = {}
EMULATED = os.environ.get("LLAMA_FAST_EMULATE_CUDA", "0") != "0"
_EMULATED_LIBRARY = Path(__file__).parents[3] / "build" / "emulated" / "libllama_fast_cuda.so"


def _load() -> dict[str, Any]:
    """The CUDA kernels by operator, read before Triton's replace them in the dispatcher."""
    if EMULATED:
        if not _EMULATED_LIBRARY.exists():
            raise ImportError(
                f"LLAMA_FAST_EMULATE_CUDA: {_EMULATED_LIBRARY} is not there; build it with "
                "LLAMA_FAST_EMULATE_CUDA=1 python setup.py build_ext"
            )
        torch.ops.load_library(str(_EMULATED_LIBRARY))
    names = [name for op in ops_of("cuda") for name in TABLE[op].operators]
    return {
        name: torch.library.get_kernel(f"llama_fast::{name}", "CUDA")
        for name in names
        if has_kernel(f"llama_fast::{name}", "CUDA")
    }


KERNELS = _load()


def missing_reason(op: str) -> str | None:
    """Why no CUDA kernel is available for `op`, or None."""
    if not serves("cuda", op):
        return f"no CUDA kernel for {op} yet"
    if library.missing_reason is not None and not EMULATED:
        return library.missing_reason
    if not all(name in KERNELS for name in TABLE[op].operators):
        why = why_not_built("CUDA")
        return "the compiled library was built without CUDA" + (f": {why}" if why else "")
    if not EMULATED and not torch.cuda.is_available():
        return "no GPU that torch can use"
    return None


def is_default(op: str, device: torch.device) -> bool:
    """Whether "auto" chooses the CUDA kernels of `op` on a GPU."""
    if not VERIFIED or missing_reason(op) is not None:
        return False
    return op in VERIFIED.get(torch.cuda.get_device_name(device), ())


def refusal(operator: str, *args: Any) -> str | None:
    """Why the CUDA kernel of `operator` cannot serve these arguments, or None."""
    return REFUSALS[operator](*args) if operator in REFUSALS else None
