"""Which backend serves an op: the public `use_backend` and `backends`, and `choose` for the ops.

table.py lists the backends and the ops that each has kernels for.

Environment: LLAMA_FAST_BACKEND, either one name for every op ("reference") or a list
("attention=reference,cross_entropy=torch").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from llama_fast.ops.backends import cuda, current, library, triton
from llama_fast.ops.backends.table import BACKENDS, OPS, TABLE, UNIVERSAL, ops_of, serves


def missing_reason(op: str, backend: str) -> str | None:
    """Why `backend` cannot serve `op` on this machine, or None if it can."""
    if backend in UNIVERSAL:
        return None
    if backend == "chunked":
        return None if serves(backend, op) else f"only {', '.join(ops_of(backend))} has it"
    if backend == "cpu":
        return library.missing_reason if serves(backend, op) else f"no C++ kernel for {op} yet"
    return triton.missing_reason(op) if backend == "triton" else cuda.missing_reason(op)


def _check(op: str, backend: str) -> str:
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    if backend not in BACKENDS:
        raise ValueError(
            f"backend for {op}: expected one of {', '.join(BACKENDS)}, got {backend!r}"
        )
    reason = missing_reason(op, backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} cannot serve {op}: {reason}")
    return backend


def _every_op(backend: str) -> dict[str, str]:
    """Map each op that has `backend` to it; raise if no op has it."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    served = {op: backend for op in OPS if missing_reason(op, backend) is None}
    if not served:
        reason = missing_reason(ops_of(backend)[0], backend)
        raise ValueError(f"backend {backend!r} serves no op here: {reason}")
    return served


def _parse_environment(value: str) -> dict[str, str]:
    try:
        if "=" not in value:
            return _every_op(value) if value else {}
        pairs = (item.partition("=") for item in value.split(","))
        return {op.strip(): _check(op.strip(), backend.strip()) for op, _, backend in pairs}
    except ValueError as error:
        text = str(error).removeprefix("backend: ")
        raise ValueError(f"LLAMA_FAST_BACKEND: {text}") from None


current.set_default(_parse_environment(os.environ.get("LLAMA_FAST_BACKEND", "")))


@contextmanager
def use_backend(backend: str | None = None, **per_op: str) -> Iterator[None]:
    """Choose the backend of the ops inside a `with` block, in its thread or asyncio task.

    A backward pass uses the backend of its forward pass, wherever it runs. Code compiled by
    torch.compile uses, at every call, the choice of the block that the process entered last.

    Args:
        backend: name of a backend for every op that has it; the other ops keep their choice.
        **per_op: name of a backend per op, e.g. ``attention="reference"``; overrides `backend`.

    Raises:
        ValueError: an op or backend is unknown, or the backend is not available on this machine;
            the message says why.

    Example:
        >>> with llama_fast.use_backend("reference"):
        ...     loss = model.loss(tokens, targets)
    """
    choice = _every_op(backend) if backend is not None else {}
    choice.update({op: _check(op, name) for op, name in per_op.items()})
    with current.entered(choice):
        yield


def choose(op: str, tensor: torch.Tensor) -> str:
    """Return the backend that serves `op` for the tensor's device and dtype, never "auto".

    Raises:
        ValueError: the requested backend does not support the device or the dtype of the tensor.
    """
    backend = current.chosen(op)
    if backend == "auto":
        return _fastest(op, tensor)
    if backend in UNIVERSAL or backend == "chunked":
        return backend
    device, dtypes = tensor.device.type, TABLE[op].kernels[backend]
    if backend == "cpu" and device not in ("cpu", "meta"):
        raise ValueError(f"backend 'cpu' of {op}: expected tensors on the CPU, got {tensor.device}")
    if device == "cpu" and (
        (backend == "triton" and not triton.INTERPRETED)
        or (backend == "cuda" and not cuda.EMULATED)
    ):
        raise ValueError(f"backend {backend!r} of {op}: expected tensors on a GPU, got cpu")
    if tensor.dtype not in dtypes:
        raise ValueError(
            f"backend {backend!r} of {op}: expected {_names(dtypes)}, got {tensor.dtype}"
        )
    return backend


def _fastest(op: str, tensor: torch.Tensor) -> str:
    """The backend that "auto" selects for a tensor."""
    device, dtype, kernels = tensor.device.type, tensor.dtype, TABLE[op].kernels
    if device == "cuda":
        if dtype in kernels.get("cuda", ()) and cuda.is_default(op, tensor.device):
            return "cuda"
        if triton.IS_READY and dtype in kernels.get("triton", ()):
            return "triton"
    # A meta tensor has no data: the operator's shape rule serves it.
    elif device in ("cpu", "meta") and library.has_cpu_kernel(op):
        return "cpu"
    return "chunked" if "chunked" in kernels else "reference"


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    """The names of `dtypes` as text, such as "float32, bfloat16 or float16"."""
    *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(others)} or {last}"


@dataclass
class Backends:
    """The backends of each op on this machine; prints as a table.

    Attributes:
        available: op -> the backends that can serve it.
        missing: op -> backend -> why that backend cannot serve it.
        notes: op -> backend -> a remark on an available backend.
        chosen: op -> the requested backend.
    """

    available: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.available))
        lines = []
        for op, names in self.available.items():
            shown = [f"{n} ({self.notes[op][n]})" if n in self.notes[op] else n for n in names]
            lines.append(f"{op:<{width}}  {', '.join(shown)}  (now: {self.chosen[op]})")
            lines += [f"{'':<{width}}    no {b}: {why}" for b, why in self.missing[op].items()]
        return "\n".join(lines)


def _notes(op: str) -> dict[str, str]:
    if cuda.EMULATED:
        return {"cuda": "emulated on the CPU"}
    if not cuda.is_default(op, torch.device("cuda", torch.cuda.current_device())):
        return {"cuda": "unverified on this GPU"}
    return {}


def backends() -> Backends:
    """Return the backends of every op: which are available, and why the others are not."""
    report = Backends(chosen=dict(current.current()))
    for op in OPS:
        reasons = {b: missing_reason(op, b) for b in BACKENDS if b != "auto"}
        report.available[op] = [b for b, reason in reasons.items() if reason is None]
        report.missing[op] = {b: reason for b, reason in reasons.items() if reason is not None}
        report.notes[op] = _notes(op) if "cuda" in report.available[op] else {}
        if not serves("chunked", op):  # it exists for one op only
            del report.missing[op]["chunked"]
    return report
