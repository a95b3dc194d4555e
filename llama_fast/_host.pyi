"""The C++ host module (csrc/host/host.cpp)."""

import numpy as np
import numpy.typing as npt

def build_info() -> dict[str, str]:
    """What this module was compiled with: compiler, cxx_standard, architecture."""

def cpu_features() -> dict[str, bool]:
    """Instruction-set extensions of this processor: name -> present."""

NOT_ENOUGH_MEMORY: str
"""Begins the message of an error where the kernels run out of memory."""

def constants() -> dict[str, int]:
    """Numbers that the C++ kernels and the Python code both hold, as the kernels have them."""

def pack_sequences(lengths: npt.ArrayLike, capacity: int) -> tuple[npt.NDArray[np.int64], int]:
    """Bin of each sequence, and the number of bins (best-fit decreasing)."""

def cu_seqlens(lengths: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Cumulative lengths 0, l0, l0+l1, ... (n+1 of them)."""
