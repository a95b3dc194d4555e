"""Which implementation serves an op: `use_backend`, `backends`, and `choose` for the ops.

Backends: "auto" (the fastest one that is there), "cpu" (compiled C++), "triton" (on a GPU; on the
CPU with TRITON_INTERPRET=1, which was set before Python started), "cuda" (compiled CUDA C++),
"chunked" (linear_cross_entropy, row chunks over the other ops), "torch" (PyTorch's own
functions, for comparison) and "reference" (the mathematics in plain PyTorch).

Environment: LLAMA_FAST_BACKEND, either one name for every op ("reference") or a list
("attention=reference,cross_entropy=torch").
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from llama_fast.ops import _cuda, _library, _triton

OPS = (
    "attention",
    "attention_decode",
    "cross_entropy",
    "linear_cross_entropy",
    "rms_norm",
    "rope",
    "swiglu",
)
BACKENDS = ("auto", "cpu", "triton", "cuda", "chunked", "torch", "reference")


def _unavailable(op: str, backend: str) -> str | None:
    """Why `backend` cannot serve `op` here, or None when it can."""
    if backend in ("auto", "torch", "reference"):
        return None
    if backend == "chunked":
        return None if op == "linear_cross_entropy" else "only linear_cross_entropy has it"
    if backend == "cpu":
        if _library.missing_reason is not None:
            return _library.missing_reason
        return None if _library.has_cpu_kernel(op) else f"no C++ kernel for {op} yet"
    if backend == "triton":
        return _triton.missing_reason(op)
    return _cuda.missing_reason(op)


def _check(op: str, backend: str) -> str:
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    if backend not in BACKENDS:
        raise ValueError(
            f"backend for {op}: expected one of {', '.join(BACKENDS)}, got {backend!r}"
        )
    reason = _unavailable(op, backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} cannot serve {op}: {reason}")
    return backend


def _every_op(backend: str) -> dict[str, str]:
    """`backend` for each op that has it; an error when no op does."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    served = {op: backend for op in OPS if _unavailable(op, backend) is None}
    if not served:
        raise ValueError(f"backend {backend!r} serves no op here: {_unavailable(OPS[0], backend)}")
    return served


def _parse_environment(value: str) -> dict[str, str]:
    if "=" not in value:
        return _every_op(value) if value else {}
    pairs = (item.partition("=") for item in value.split(","))
    return {op.strip(): _check(op.strip(), backend.strip()) for op, _, backend in pairs}


_DEFAULT = dict.fromkeys(OPS, "auto") | _parse_environment(os.environ.get("LLAMA_FAST_BACKEND", ""))
# Of this thread or task: none of these dictionaries changes.
_chosen: ContextVar[dict[str, str]] = ContextVar("llama_fast_backends", default=_DEFAULT)
# torch.compile can neither trace a context variable nor guard on one, but it can a dictionary: the
# choice of the block of the process that was entered last and is not left yet.
_traced = dict(_DEFAULT)
_entered: list[dict[str, str]] = []
_lock = threading.Lock()


@contextmanager
def use_backend(backend: str | None = None, **per_op: str) -> Iterator[None]:
    """Choose the implementation of the ops inside a `with` block, for its thread or asyncio task.

    The backward pass of what was computed inside uses the same, wherever it runs. Code that
    torch.compile made asks, at every call, for the block that the process entered last.

    Args:
        backend: name for every op that has it; the others keep their choice.
        **per_op: name per op, e.g. ``attention="reference"``; wins over `backend`.

    Raises:
        ValueError: an unknown op or backend, or one that is missing here (and why).

    Example:
        >>> with llama_fast.use_backend("reference"):
        ...     loss = model.loss(tokens, targets)
    """
    choice = _every_op(backend) if backend is not None else {}
    choice.update({op: _check(op, name) for op, name in per_op.items()})
    mine = {**_chosen.get(), **choice}
    token = _chosen.set(mine)
    with _lock:
        _entered.append(mine)
        _traced.update(mine)
    try:
        yield
    finally:
        _chosen.reset(token)
        with _lock:
            _entered[:] = [other for other in _entered if other is not mine]
            _traced.update(_entered[-1] if _entered else _DEFAULT)


def current() -> dict[str, str]:
    """What was asked for by op, here and now; for `in_force`, outside torch.compile."""
    return _chosen.get()


@contextmanager
def in_force(choice: dict[str, str]) -> Iterator[None]:
    """What was `current` elsewhere, in a backward pass for example."""
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen(op: str) -> str:
    """The backend asked for, which may be "auto"."""
    return _traced[op] if torch.compiler.is_compiling() else _chosen.get()[op]


def choose(op: str, tensor: torch.Tensor) -> str:
    """The backend that serves `op` for `tensor`'s device: never "auto".

    Raises:
        ValueError: the backend asked for does not run on the tensor's device.
    """
    backend = chosen(op)
    device = tensor.device.type
    if backend == "auto":
        wide = tensor.dtype == torch.float64
        if device == "cuda" and not wide and _cuda.is_default(op, tensor.device):
            return "cuda"
        if device == "cuda" and op in _triton.READY:
            return "reference" if wide and op in _triton.WITHOUT_FLOAT64 else "triton"
        # A meta tensor has no data: the operator's shape rule serves it.
        compiled = device in ("cpu", "meta") and _library.has_cpu_kernel(op)
        without = "chunked" if op == "linear_cross_entropy" else "reference"
        return "cpu" if compiled else without
    if backend == "cpu" and device not in ("cpu", "meta"):
        raise ValueError(f"backend 'cpu' of {op}: expected tensors on the CPU, got {tensor.device}")
    if backend == "triton" and device == "cpu" and not _triton.INTERPRETED:
        raise ValueError(f"backend 'triton' of {op}: expected tensors on a GPU, got cpu")
    if backend == "cuda" and device == "cpu" and not _cuda.EMULATED:
        raise ValueError(f"backend 'cuda' of {op}: expected tensors on a GPU, got cpu")
    if backend == "cuda" and tensor.dtype == torch.float64:
        raise ValueError(
            f"backend 'cuda' of {op}: expected float32, bfloat16 or float16, got float64"
        )
    return backend


@dataclass
class Backends:
    """What serves each op here. Print it for a table; `missing[op][backend]` says why not.

    `notes[op][backend]` says what there is to know of one that is available.
    """

    available: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.available))
        lines = []
        for op, names in self.available.items():
            said = [f"{n} ({self.notes[op][n]})" if n in self.notes[op] else n for n in names]
            lines.append(f"{op:<{width}}  {', '.join(said)}  (now: {self.chosen[op]})")
            lines += [f"{'':<{width}}    no {b}: {why}" for b, why in self.missing[op].items()]
        return "\n".join(lines)


def _notes(op: str) -> dict[str, str]:
    if _cuda.EMULATED:
        return {"cuda": "emulated on the CPU"}
    if not _cuda.is_default(op, torch.device("cuda", torch.cuda.current_device())):
        return {"cuda": "unverified on this GPU"}
    return {}


def backends() -> Backends:
    """The backends of every op: those that are here, and why the others are not."""
    report = Backends(chosen=dict(_chosen.get()))
    for op in OPS:
        reasons = {b: _unavailable(op, b) for b in BACKENDS if b != "auto"}
        report.available[op] = [b for b, reason in reasons.items() if reason is None]
        report.missing[op] = {b: reason for b, reason in reasons.items() if reason is not None}
        report.notes[op] = _notes(op) if "cuda" in report.available[op] else {}
        if op != "linear_cross_entropy":
            report.missing[op].pop("chunked", None)
    return report
