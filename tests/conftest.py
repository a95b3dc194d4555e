"""With TRITON_INTERPRET=1 the Triton kernels alone are tested, in an interpreter on the CPU.

What a run leaves out it says in its last line: ``tests/skips.py``.
"""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import extras
from tests.skips import (  # noqa: F401
    leave_extras_out,
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

# The same examples at every run, however long a busy machine takes for them.
settings.register_profile(
    "llama_fast", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("llama_fast")

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests that
# interrupt a child would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = Path(__file__).parent / "ops"  # where all tests of Triton kernels are


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """In the interpreter read nothing but the tests of the ops: collecting all takes a while."""
    inside = TRITON in (collection_path, *collection_path.parents)
    above = collection_path in TRITON.parents
    return True if INTERPRETED and not inside and not above else None


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Skip a module where a package of an extra is missing."""
    module: pytest.Module = extras.Module.from_parent(parent, path=module_path)
    return module


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the interpreter run what is about Triton; the rest is the same with and without it."""
    leave_extras_out(config, items)
    if INTERPRETED:
        others = [item for item in items if "triton" not in item.nodeid]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if "triton" in item.nodeid]


def round_like_a_gpu() -> None:
    """Triton's interpreter cuts float32 off to bfloat16, and makes noise of float64.

    Its float32 products are NumPy's, which some BLAS libraries sum in an order that depends on the
    shape of the matrices. A GPU makes each number of a product alike in the forward and the
    backward, whatever the tile: so do products in float64, rounded once.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl
    wide = (tl.float32, tl.float64)

    def rounded(self: Any, source: Any, to: Any) -> Any:
        was, becomes = source.dtype.scalar, to.scalar
        if was == tl.bfloat16 and becomes == tl.float64:
            return cast(self, cast(self, source, tl.float32), to)
        if was in wide and becomes == tl.bfloat16:
            bits = torch.from_numpy(np.array(source.data)).to(torch.bfloat16).view(torch.int16)
            return TensorHandle(bits.numpy().view(np.uint16), becomes)
        return cast(self, source, to)

    dot = InterpreterBuilder.create_dot

    def alike(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if not a.dtype.scalar == b.dtype.scalar == d.dtype.scalar == tl.float32:
            return dot(self, a, b, d, *options)
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return TensorHandle(product.astype(np.float32) + d.data, d.dtype.scalar)

    InterpreterBuilder.cast_impl = rounded
    InterpreterBuilder.create_dot = alike


if INTERPRETED and importlib.util.find_spec("triton"):
    round_like_a_gpu()
