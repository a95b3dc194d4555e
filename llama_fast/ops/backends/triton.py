"""The backend "triton": registers the Triton kernels as implementations of the operators.

Triton is imported at the first call of a kernel. With TRITON_INTERPRET=1 in the environment the
kernels also run on CPU tensors, in Triton's slow interpreter, for tests without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from llama_fast._beside import find_beside
from llama_fast._torch_internals import has_kernel
from llama_fast.ops.backends import cuda, current
from llama_fast.ops.backends.library import library
from llama_fast.ops.backends.operator_checks import CHECKS
from llama_fast.ops.backends.table import TABLE, ops_of, serves

find_beside("kernels")

MINIMUM_VERSION = (3, 6)


def _missing_package() -> str | None:
    """Why Triton cannot be used, or None."""
    for name in ("triton", "pytorch-triton"):  # the latter with nightly builds of torch
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        major, minor = version.split(".")[:2]
        if (int(major), int(minor)) >= MINIMUM_VERSION:
            return None
        return f"triton {version} is older than {'.'.join(map(str, MINIMUM_VERSION))}"
    return "triton is not installed"


# Determined once, because torch.compile cannot trace the check.
_PACKAGE = _missing_package()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IS_READY = _PACKAGE is None


def missing_reason(op: str) -> str | None:
    """Why no Triton kernel is available for `op`, or None."""
    if not serves("triton", op):
        return f"no Triton kernel for {op} yet"
    if _PACKAGE is not None:
        return _PACKAGE
    if not INTERPRETED and not torch.cuda.is_available():
        return "no GPU that torch can use (TRITON_INTERPRET=1 runs the kernels on the CPU)"
    return None


def _launcher(op: str, operator: str) -> Callable[..., Any]:
    """The function that launches the kernels of `operator`, imported when it is first called."""
    launch: Callable[..., Any] | None = None
    check = CHECKS.get(operator)

    def call(*args: Any) -> Any:
        nonlocal launch
        if check is not None:
            check(*args)
        if launch is None:
            launch = getattr(importlib.import_module(f"llama_fast.kernels.{op}"), operator)
        device = args[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current one
                return launch(*args)
        return launch(*args)

    return call


def _switch(op: str, operator: str, key: str, ways: dict[str, Callable[..., Any]]) -> None:
    """Register an operator that calls `ways[backend]`, or `ways[""]` for any other backend."""

    def call(keys: Any, *args: Any) -> Any:
        backend = current.chosen(op)
        if backend == "auto" and key == "CUDA" and cuda.is_default(op, args[0].device):
            backend = "cuda" if cuda.refusal(operator, *args) is None else "triton"
        return ways.get(backend, ways[""])(keys, *args)

    with warnings.catch_warnings():  # torch warns that the compiled kernel is overridden
        warnings.simplefilter("ignore", UserWarning)
        library.impl(operator, call, key, with_keyset=True)


def _register(op: str, operator: str) -> None:
    launch = _launcher(op, operator)
    compiled = cuda.KERNELS.get(operator)
    ways = {"": lambda keys, *args: launch(*args)}
    if compiled is None:
        library.impl(operator, launch, "CUDA")
    else:
        _switch(op, operator, "CUDA", {**ways, "cuda": compiled.call_boxed})

    # On the CPU, Triton's interpreter and the CUDA emulation are alternatives to the compiled
    # kernel.
    others = {"triton": ways[""]} if INTERPRETED else {}
    if cuda.EMULATED and compiled is not None:
        others["cuda"] = compiled.call_boxed
    if not others:
        return
    name = f"llama_fast::{operator}"
    if has_kernel(name, "CPU"):
        others[""] = torch.library.get_kernel(name, "CPU").call_boxed
    else:
        others[""] = ways[""]
    _switch(op, operator, "CPU", others)


for _op in ops_of("triton"):
    for _operator in TABLE[_op].operators:
        _register(_op, _operator)
