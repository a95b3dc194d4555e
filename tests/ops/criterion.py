"""When a result is right: the one principle behind every numerical test of the ops.

The truth is the reference formula in float64, on inputs already rounded to the dtype under test.
An op is right when its error against that truth, the largest and the root-mean-square one, is at
most

    the error of stock PyTorch, in the same dtype, on the same inputs     (the yardstick)
    + one rounding step of the output dtype

No tolerance is chosen anywhere: a yardstick cannot be loosened to make a test pass.

Both errors are draws of chance, so that an op as exact as its yardstick exceeds it now and then.
Where that happens on a test's inputs, more inputs of the same kind are drawn, until the excess is
no longer positive on average. The op is wrong if after eight of them it still is, by two standard
errors of that average; or if it errs on any of them by more than four times the worst of the
yardstick.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

import llama_fast
from llama_fast.ops.backends.table import OPS
from tests.ops.fused_formula import fused_backward

Results = Mapping[str, torch.Tensor]
# run(function, inputs_dtype, dtype, seed) calls a function on a test's inputs, drawn with `seed`,
# rounded to the first dtype and converted to the second, and returns what comes out by name.
Run = Callable[[Callable[..., Any], torch.dtype, torch.dtype, int], Results]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLOAT64_PER_FLOAT32 = 2.0**-29
MORE_DRAWS = 8


def to_dtype(
    tensors: Mapping[str, torch.Tensor], inputs_dtype: torch.dtype, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Floating tensors rounded to `inputs_dtype`, then converted to `dtype`; others as they are."""
    return {
        name: t.to(inputs_dtype).to(dtype) if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def upstream_gradient(result: torch.Tensor, inputs_dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A random gradient of `result`, the same numbers whatever its dtype."""
    g = torch.Generator(result.device).manual_seed(1000 + seed)
    values = torch.randn(result.shape, generator=g, dtype=torch.float64, device=result.device)
    return values.to(inputs_dtype).to(result.dtype)


def gradients(
    outputs: Iterable[torch.Tensor],
    leaves: Mapping[str, torch.Tensor],
    inputs_dtype: torch.dtype,
    seed: int,
) -> dict[str, torch.Tensor]:
    """The gradient of each leaf, named "grad NAME", for random gradients of the outputs."""
    outputs = list(outputs)
    upstream = [upstream_gradient(out, inputs_dtype, seed) for out in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    return {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def check(
    op: str,
    function: Callable[..., Any],
    run: Run,
    dtype: torch.dtype,
    formula: Callable[..., Any] | None = None,
    *,
    extreme: bool = False,
) -> None:
    """Run an op and assert the criterion for all that it returns, gradients included.

    `formula` stands for the reference where that needs an argument that the op has not; torch's
    own function is no yardstick then. `extreme` inputs may lead out of the range of a dtype (see
    `assert_special_values_of_range`), and to results that are nothing but rounding errors, which
    differ from one order of summation to another: as in flash-attention's tests, twice as much is
    allowed. Of float64 sixteen times: float32, scaled, says no more than the order of magnitude
    where 100 and 1e-10 are added, which is exact in float32.
    """
    draws = [measure(op, function, run, dtype, formula, seed=0, extreme=extreme)]
    suspects = [key for key, (error, allowed, step) in draws[0].items() if error > allowed + step]
    open_cases = suspects
    while open_cases and len(draws) <= MORE_DRAWS:
        draws.append(measure(op, function, run, dtype, formula, seed=len(draws), extreme=extreme))
        open_cases = [key for key in suspects if excess(draws, key).mean() > 0]
    for key in suspects:
        errors, allowed, steps = columns(draws, key)
        message = (
            f"{key}: errors {[f'{e:.2g}' for e in errors.tolist()]}, stock's "
            f"{[f'{e:.2g}' for e in allowed.tolist()]}, a rounding step {steps[0]:.2g}"
        )
        over = excess(draws, key)
        assert over.mean() <= 2 * over.std() / math.sqrt(len(draws)), message
        assert (errors <= 4 * allowed.max() + steps).all(), message


def columns(draws: list[dict[str, tuple[float, float, float]]], key: str) -> list[torch.Tensor]:
    """Errors, yardstick's errors and rounding steps of a result, draw by draw."""
    return list(torch.tensor([draw[key] for draw in draws]).double().unbind(1))


def excess(draws: list[dict[str, tuple[float, float, float]]], key: str) -> torch.Tensor:
    """By how much the errors of a result exceed what is allowed."""
    errors, allowed, steps = columns(draws, key)
    return errors - allowed - steps


def measure(
    op: str,
    function: Callable[..., Any],
    run: Run,
    dtype: torch.dtype,
    formula: Callable[..., Any] | None,
    seed: int,
    extreme: bool = False,
) -> dict[str, tuple[float, float, float]]:
    """(error, yardstick's error, rounding step) of each result, largest and root-mean-square."""
    own_formula = formula is not None
    formula = formula or served_by("reference", op)
    result = run(function, dtype, dtype, seed)
    truth = run(formula, dtype, torch.float64, seed)
    stock_dtype, scale, stock_truth = dtype, 1.0, truth
    if dtype == torch.float64:
        stock_dtype, scale = torch.float32, 2 * FLOAT64_PER_FLOAT32
        stock_truth = run(formula, stock_dtype, torch.float64, seed)

    def in_stock_dtype(f: Callable[..., Any]) -> Results:
        return run(f, stock_dtype, stock_dtype, seed)

    yardsticks = [in_stock_dtype(formula)]
    if own_formula:
        with naive_precision():
            yardsticks.append(in_stock_dtype(formula))
    else:
        yardsticks.append(_stock_or_naive(op, in_stock_dtype))
    if op == "attention" and not own_formula:
        with fused_backward(stock_dtype):
            yardsticks.append(in_stock_dtype(formula))

    measured = {}
    assert result.keys() == truth.keys()
    for name, value in result.items():
        if extreme:
            in_range = yardsticks[0][name] if stock_dtype == dtype else truth[name]
            error = scale * max(sizes(y[name].double() - stock_truth[name])[0] for y in yardsticks)
            assert_special_values_of_range(name, value, truth[name], in_range, 2 * error)
        else:
            assert_special_values(name, value, truth[name])
        allowed = [sizes(y[name].double() - stock_truth[name]) for y in yardsticks]
        info = torch.finfo(value.dtype)
        least = info.smallest_normal * info.eps  # the spacing of denormal numbers
        for measure_name, error, stock_errors, size in zip(
            ("largest error", "root-mean-square error"),
            sizes(value.double() - truth[name]),
            zip(*allowed, strict=True),
            sizes(truth[name]),
            strict=True,
        ):
            step = max(info.eps * size, least)
            factor = (16 if dtype == torch.float64 else 2) if extreme else 1
            allowance = scale * max(stock_errors) * factor
            measured[f"{measure_name} of {name}"] = (error, allowance, step * factor)
    return measured


def assert_special_values(name: str, result: torch.Tensor, truth: torch.Tensor) -> None:
    """The right shape; inf and NaN where the truth has them, and nowhere else."""
    assert result.shape == truth.shape, f"{name}: shape {result.shape}, expected {truth.shape}"
    special = ~truth.isfinite()
    torch.testing.assert_close(
        result.double()[special], truth[special], equal_nan=True, msg=f"{name}: inf and NaN differ"
    )
    assert result[~special].isfinite().all(), f"{name}: inf or NaN where the truth has none"


def assert_special_values_of_range(
    name: str, result: torch.Tensor, truth: torch.Tensor, reference: torch.Tensor, error: float
) -> None:
    """inf or NaN only where the reference, in the same dtype, has one; and where the truth has one.

    The truth, in float64, has not what lies beyond the range of the dtype under test, or so near
    its end that an `error` leads there.
    """
    assert result.shape == truth.shape, f"{name}: shape {result.shape}, expected {truth.shape}"
    there = truth.isfinite()
    beyond = ~reference.isfinite() | (truth.abs() + error >= torch.finfo(result.dtype).max)
    lost = ~result.isfinite() & there & ~beyond
    assert not lost.any(), f"{name}: {result[lost]} where the truth is {truth[lost]}"
    made_up = result.isfinite() & ~there
    assert not made_up.any(), f"{name}: {result[made_up]} where the truth is {truth[made_up]}"


def sizes(t: torch.Tensor) -> tuple[float, float]:
    """Largest and root-mean-square finite element."""
    finite = t[t.isfinite()].double()
    if not finite.numel():
        return 0.0, 0.0
    return finite.abs().max().item(), finite.square().mean().sqrt().item()


def served_by(backend: str, op: str) -> Callable[..., Any]:
    """The public function of an op, served by `backend`."""

    def function(*args: Any, **options: Any) -> Any:
        with llama_fast.use_backend(**{op: backend}):
            return getattr(llama_fast, op)(*args, **options)

    return function


def _stock_or_naive(op: str, run: Callable[[Callable[..., Any]], Results]) -> Results:
    """The results of torch's own function, or of the naive formula where torch has none."""
    try:
        return run(served_by("torch", op))
    except ValueError:  # an option that torch's function lacks
        with naive_precision():
            return run(served_by("reference", op))


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
