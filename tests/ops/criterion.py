"""When a result is right: the one principle behind every numerical test of the ops.

The truth is the reference formula in float64, on inputs already rounded to the dtype under test.
An op is right when its root-mean-square error against that truth is at most

    the error of stock PyTorch, in the same dtype, on the same inputs     (the yardstick)
    + one rounding step of the output dtype

and its largest error at most twice the first plus the second. The largest of many rounding errors
is a single draw of chance, as is any error of a tensor with few elements: there the factor 2 is
that of flash-attention's tests. No other tolerance appears in the tests: a yardstick cannot be
loosened to make a test pass.

The yardstick is the largest error among what PyTorch users have today:

- torch's own function for the op; or, where it lacks an option, the formula executed naively,
  every intermediate in the dtype under test;
- the formula written with torch's elementary operations, accumulating in float32;
- for attention, the algorithm of torch's fused kernel written out, since torch uses that kernel
  for some options only (see fused_formula.py).

A rounding step is the spacing of the output dtype at the largest number of the tensor (for the
root-mean-square error: at its root-mean-square).

float64 has no wider truth. There the yardstick is the float32 one, scaled by 2^-29, the ratio of
the two unit roundoffs; twice, because the truth carries a rounding error of its own.

Infinities and NaNs must stand where the truth has them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from llama_fast import reference
from llama_fast.ops import stock
from llama_fast.ops._backend import OPS
from tests.ops.fused_formula import fused_backward

Results = Mapping[str, torch.Tensor]
# Calls a function on a test's inputs rounded to the first dtype and converted to the second.
Run = Callable[[Callable[..., Any], torch.dtype, torch.dtype], Results]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLOAT64_PER_FLOAT32 = 2.0**-29
MANY = 200  # elements from which on a root-mean-square error is steady within 5 %


def check(
    op: str,
    function: Callable[..., Any],
    run: Run,
    dtype: torch.dtype,
    formula: Callable[..., Any] | None = None,
) -> None:
    """Run an op and assert the criterion for all that it returns, gradients included.

    `formula` stands for the reference where that needs an argument that the op has not; torch's
    own function is no yardstick then.
    """
    own_formula = formula is not None
    formula = formula or getattr(reference, op)
    result = run(function, dtype, dtype)
    truth = run(formula, dtype, torch.float64)
    measured, scale = dtype, 1.0
    if dtype == torch.float64:
        measured, scale = torch.float32, 2 * FLOAT64_PER_FLOAT32
    measured_truth = truth if measured == dtype else run(formula, measured, torch.float64)
    yardsticks = [run(formula, measured, measured)]
    if own_formula:
        with naive_precision():
            yardsticks.append(run(formula, measured, measured))
    else:
        yardsticks.append(_stock_or_naive(op, run, measured))
    if op == "attention" and not own_formula:
        with fused_backward(measured):
            yardsticks.append(run(formula, measured, measured))
    assert result.keys() == truth.keys()
    for name, value in result.items():
        allowed = [errors(y[name], measured_truth[name]) for y in yardsticks]
        assert_right(name, value, truth[name], [scale * max(e) for e in zip(*allowed, strict=True)])


def assert_right(
    name: str, result: torch.Tensor, truth: torch.Tensor, stock_errors: list[float]
) -> None:
    """Assert the criterion for one tensor; `stock_errors` are the yardstick's two errors."""
    assert result.shape == truth.shape, f"{name}: shape {result.shape}, expected {truth.shape}"
    special = ~truth.isfinite()
    torch.testing.assert_close(
        result.double()[special], truth[special], equal_nan=True, msg=f"{name}: inf and NaN differ"
    )
    finite = truth[~special]
    if not finite.numel():
        return
    assert result[~special].isfinite().all(), f"{name}: inf or NaN where the truth has none"
    step = torch.finfo(result.dtype).eps
    sizes = (finite.abs().max().item(), finite.square().mean().sqrt().item())
    kinds = ("largest", "root-mean-square")
    factors = (2, 1 if finite.numel() >= MANY else 2)
    for kind, factor, error, stock_error, size in zip(
        kinds, factors, errors(result, truth), stock_errors, sizes, strict=True
    ):
        assert math.isfinite(stock_error), f"{name}: the yardstick overflowed; choose other inputs"
        assert error <= factor * stock_error + step * size, (
            f"{name}: {kind} error {error:.3g} is over {factor} x stock's {stock_error:.3g} "
            f"+ a rounding step {step * size:.3g}"
        )


def errors(result: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error over the finite elements of the truth."""
    difference = (result.double() - truth.double())[truth.isfinite()]
    if not difference.numel():
        return 0.0, 0.0
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def _stock_or_naive(op: str, run: Run, dtype: torch.dtype) -> Results:
    """What torch's own function makes of the inputs, or the naive formula where there is none."""
    try:
        return run(getattr(stock, op), dtype, dtype)
    except ValueError:  # an option that torch's function lacks
        with naive_precision():
            return run(getattr(reference, op), dtype, dtype)


@contextmanager
def naive_precision() -> Iterator[None]:
    """Inside, the reference computes every intermediate in the dtype of its input."""
    modules = [importlib.import_module(f"llama_fast.reference.{name}") for name in OPS]
    before = modules[0].compute_dtype
    try:
        for module in modules:
            module.compute_dtype = lambda t: t.dtype
        yield
    finally:
        for module in modules:
            module.compute_dtype = before
