"""The `llama_fast` operator namespace, and the compiled library that implements it on the CPU.

Environment:
    LLAMA_FAST_LIBRARY  path of another compiled library (a sanitizer build, for example)
    LLAMA_FAST_ISA      instruction set to use: portable, avx2, avx512, avx512_bf16,
                        amx_bf16; on 64-bit Arm neon, neon_bf16
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch

from llama_fast._build_record import retry_command, why_not_built
from llama_fast.ops.backends.table import OTHER_SCHEMAS, TABLE

library = torch.library.Library("llama_fast", "DEF")
for _schema in (*OTHER_SCHEMAS, *(schema for op in TABLE.values() for schema in op.schemas)):
    library.define(_schema)


def _library_path() -> Path:
    override = os.environ.get("LLAMA_FAST_LIBRARY")
    return Path(override) if override else Path(__file__).parents[2] / "libllama_fast.so"


def _load() -> str | None:
    """Load the compiled library; return why it cannot be loaded, or None."""
    path = _library_path()
    if not path.exists():
        why = why_not_built("ops library")
        if why is None or "LLAMA_FAST_LIBRARY" in os.environ:
            variable = "LLAMA_FAST_LIBRARY: " if "LLAMA_FAST_LIBRARY" in os.environ else ""
            return f"{variable}the compiled library is not there ({path})"
        return f"the compiled library was not built: {why}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    return None


missing_reason = _load()
if missing_reason is not None:
    warnings.warn(
        f"llama_fast: {missing_reason}. On CPUs, slow PyTorch code is used instead. To build the "
        f"library, or to see why that fails: {retry_command()}",
        RuntimeWarning,
        stacklevel=2,
    )


def own_error(error: RuntimeError) -> Exception:
    """The ValueError that a kernel threw, or `error`.

    torch from 2.15 on makes a RuntimeError of a kernel's ValueError, while an IndexError stays one.
    """
    own = re.match(r"(?!llama_fast)\w+: expected ", str(error))
    return ValueError(str(error)) if own else error


def has_cpu_kernel(op: str) -> bool:
    """Whether the compiled library is loaded and holds CPU kernels for `op`."""
    return missing_reason is None and "cpu" in TABLE[op].kernels


def isa_or_none() -> str:
    """As :func:`isa`, read once."""
    return _ISA


def isa() -> str:
    """The instruction set that the CPU kernels use, or "none" without the compiled library."""
    return torch.ops.llama_fast.isa() if missing_reason is None else "none"


try:
    _ISA = isa()  # read once: torch.compile cannot trace the call
except RuntimeError as error:  # LLAMA_FAST_ISA is invalid
    raise ValueError(str(error).partition("\n")[0]) from None
