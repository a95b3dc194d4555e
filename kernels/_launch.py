"""Launches kernels; helpers for the launchers: the GPU, layouts, types.

A launcher computes its grid and configuration and calls `launch`. Within `recording`, launches are
recorded instead of run, for a GPU that need not be present. `make gpu-compile` gets its list of
configurations this way (see _compile.py).

Environment:
    LLAMA_FAST_AUTOTUNE  if 1, a launch times its alternatives at its first call and keeps the
    fastest
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton

# Fewer roundings, and faster. Set because the default differs between versions of Triton.
_ALWAYS = {"enable_fp_fusion": True}
AUTOTUNE = os.environ.get("LLAMA_FAST_AUTOTUNE") == "1"

# Constexpr arguments, and num_warps, num_stages, maxnreg.
Options = dict[str, Any]
Arguments = Callable[[Options], Sequence[Any]] | Sequence[Any]
Grid = Callable[[Options], tuple[int, ...]] | tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that configurations depend on.

    Attributes:
        arch: 80 for sm_80 (A100), 90 for sm_90 (H100, H200), 100 for sm_100 (B200).
        processors: number of streaming multiprocessors.
    """

    arch: int
    processors: int


# For the interpreter: few processors, so that tests split rows over several programs.
_INTERPRETER = Gpu(90, 4)
PROCESSORS = {80: 108, 90: 132, 100: 148}


@dataclass
class Launch:
    """One recorded launch: tensors and numbers by argument name, then the options.

    Attributes:
        alternative: whether only autotuning would choose these options.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: Options
    alternative: bool


_recording: tuple[Gpu, list[Launch]] | None = None
_gpus: dict[torch.device, Gpu] = {}
_fastest_options: dict[tuple[Any, ...], Options] = {}


@contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """Within the context, `launch` appends to a list instead of running kernels.

    Tensors may be meta tensors.
    """
    global _recording
    launches: list[Launch] = []
    _recording = Gpu(arch, PROCESSORS[arch]), launches
    try:
        yield launches
    finally:
        _recording = None


def gpu(t: torch.Tensor) -> Gpu:
    """The GPU that holds `t`."""
    if _recording is not None:
        return _recording[0]
    if not t.is_cuda:
        return _INTERPRETER
    if t.device not in _gpus:
        properties = torch.cuda.get_device_properties(t.device)
        arch = properties.major * 10 + properties.minor
        _gpus[t.device] = Gpu(arch, properties.multi_processor_count)
    return _gpus[t.device]


def launch(
    kernel: Any,
    grid: Grid,
    arguments: Arguments,
    options: Options,
    *alternatives: Options,
    repeatable: bool = True,
) -> None:
    """Run `kernel` for every program of `grid`; do nothing if the grid is empty.

    Args:
        kernel: a `triton.jit` function.
        grid: the number of programs by axis, or a function of the options that gives it.
        arguments: the arguments that are not constexpr, in the kernel's order; or a function of
            the options that gives them.
        options: the constexpr arguments by name, and num_warps, num_stages, maxnreg.
        alternatives: more options, which LLAMA_FAST_AUTOTUNE=1 compares with the first.
        repeatable: whether a second launch gives the same results; only such kernels are timed.
    """
    if _recording is not None:
        for i, choice in enumerate((options, *alternatives)):
            values = arguments(choice) if callable(arguments) else arguments
            named = dict(zip(kernel.arg_names, values, strict=False))
            _recording[1].append(Launch(kernel, named, choice | _ALWAYS, alternative=i > 0))
        return
    if AUTOTUNE and alternatives and repeatable:
        options = _fastest(kernel, grid, arguments, (options, *alternatives))
    programs = grid(options) if callable(grid) else grid
    if 0 not in programs:
        values = arguments(options) if callable(arguments) else arguments
        kernel[programs](*values, **options, **_ALWAYS)


def _fastest(
    kernel: Any, grid: Grid, arguments: Arguments, choices: tuple[Options, ...]
) -> Options:
    """The fastest choice for arguments like these; they are timed at the first call."""
    values = arguments(choices[0]) if callable(arguments) else arguments
    key = (kernel, _tuning_key(tuple(values)), *map(str, choices))
    if key not in _fastest_options:
        times = [
            triton.testing.do_bench(
                partial(launch, kernel, grid, arguments, choice), return_mode="median"
            )
            for choice in choices
        ]
        _fastest_options[key] = choices[times.index(min(times))]
    return _fastest_options[key]


def _tuning_key(argument: Any) -> Any:
    """The properties of an argument on which the fastest options may depend."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.shape
    if isinstance(argument, tuple):
        return tuple(map(_tuning_key, argument))
    return argument if isinstance(argument, int) else None


def as_rows(t: torch.Tensor) -> torch.Tensor:
    """`t` (..., E) as (rows, E) with contiguous rows: a view if the strides allow it."""
    flat = t.reshape(-1, t.shape[-1]) if t.numel() else t.new_empty(0, max(t.shape[-1], 1))
    return flat if flat.stride(1) == 1 or flat.shape[1] <= 1 else flat.contiguous()


def has_heads_inside(t: torch.Tensor) -> bool:
    """Whether `t` (B,H,S,D) lies in memory as (B,S,H,D)."""
    return t.dim() == 4 and t.stride(1) < t.stride(2)


def new_like_heads(t: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty tensor of the shape of `t` and with the same order of heads, else contiguous.

    Must agree with `empty_like_heads` in llama_fast/ops/_autograd.py, the operators' shape rule.
    """
    if has_heads_inside(t):
        return t.transpose(1, 2).new_empty(t.transpose(1, 2).shape, dtype=dtype).transpose(1, 2)
    return t.new_empty(t.shape, dtype=dtype)


def warps(elements: int, max_warps: int = 32) -> int:
    """Number of warps for a block of `elements`: 16 elements per thread, at most `max_warps`."""
    return max(1, min(max_warps, elements // 512))


def accumulator(dtype: torch.dtype) -> Any:
    """The Triton type in which values of `dtype` are computed."""
    return triton.language.float64 if dtype == torch.float64 else triton.language.float32
