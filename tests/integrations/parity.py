"""How far a model's numbers are from the truth: the same model, and the same weights, in float64.

transformers' models compute parts of themselves in float32 whatever their dtype. For the truth
these parts are computed in float64 too.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import llama_fast
from tests.integrations import zoo
from tests.integrations.zoo import Inputs

Results = dict[str, torch.Tensor]
DRAWS = 6
ZERO = 1e-9  # of a common gradient: what float64 leaves of a sum that is 0


class NoTruth(Exception):
    """Stock fails in float64."""


class _NothingNarrow(TorchFunctionMode):
    """Inside, what would be made float32 is made float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(_wide(value) for value in args)
        return func(*args, **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def results(model: Any, inputs: Inputs) -> Results:
    """Loss, logits at places that count, and every gradient, "grad " before a parameter's name."""
    model.zero_grad()
    cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    out = model(**inputs, **cache)
    out.loss.backward()
    found = {"loss": out.loss.detach(), "logits": out.logits.detach()}
    kept = inputs.get("attention_mask")
    if kept is not None and kept.shape == found["logits"].shape[:2]:
        found["logits"] = found["logits"][kept == 1]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"grad {name}"] = parameter.grad
            parameter.grad = None
    return found


def truth(model: Any, inputs: Inputs) -> Results:
    """What an unpatched model gives, computed in float64."""
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"  # others have no float64
    try:
        with _NothingNarrow():
            found = results(wide, inputs)
    except (RuntimeError, TypeError) as error:
        raise NoTruth(f"stock fails in float64: {type(error).__name__}: {error}") from error
    assert all(value.dtype == torch.float64 for value in found.values())
    return found


def errors(found: Results, right: Results) -> dict[str, tuple[float, float]]:
    """Largest and root-mean-square error of each result, over the root-mean-square of the truth.

    Where that is 0 in truth, as the gradient of a bias that all keys share, it is the one that
    gradients of this model commonly have.
    """
    assert found.keys() == right.keys()
    sizes = {name: _root_mean_square(value) for name, value in right.items()}
    common = statistics.median(sizes.values())
    measured = {}
    for name, want in right.items():
        assert found[name].shape == want.shape, name
        error = found[name].double() - want
        size = sizes[name] if sizes[name] > ZERO * common else common
        measured[name] = error.abs().max().item() / size, _root_mean_square(error) / size
    return measured


def overall(measured: dict[str, tuple[float, float]]) -> float:
    """Root-mean-square error over all results, each of which counts the same."""
    return math.sqrt(statistics.fmean(error**2 for _, error in measured.values()))


def _root_mean_square(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def measured(
    name: str,
    what: str,
    dtype: torch.dtype,
    seed: int = 0,
    using: Callable[[Any], AbstractContextManager[Any]] = llama_fast.patch,
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """:func:`errors` of stock and of ours on one batch of an architecture.

    Args:
        name: the architecture.
        what: the batch.
        dtype: of parameters and inputs.
        seed: of the parameters.
        using: makes the model use our kernels in a ``with`` block.
    """
    more = zoo.ZOO[name].all_experts if dtype is torch.bfloat16 else {}
    model = zoo.build(name, dtype, seed, **more)
    inputs = zoo.batches(name, model)[what]
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    right = truth(model, inputs)
    stock = errors(results(model, inputs), right)
    with using(model):
        return stock, errors(results(model, inputs), right)


def further_than_stock(
    name: str,
    dtype: torch.dtype,
    using: Callable[[Any], AbstractContextManager[Any]] = llama_fast.patch,
) -> list[str]:
    """What of ours is further from the truth than stock, a line each.

    Over all results (loss, logits, each parameter's gradient) and all batches, the root-mean-square
    error is no larger than stock's plus one rounding step; and no single result is further off than
    twice stock's worst of that result or of all of them together, whichever is larger.
    """
    batches = list(zoo.batches(name, zoo.build(name)))
    stock: dict[str | None, list[float]] = {}  # the errors of each result, of all of them in None
    ours: dict[str | None, list[float]] = {}

    def suspicions() -> Iterator[str]:
        bound = pooled(stock[None]) + torch.finfo(dtype).eps / 2
        if pooled(ours[None]) > bound:
            yield f"{pooled(ours[None]):.2e} off, stock {pooled(stock[None]):.2e}"
        for result, found in ours.items():
            bound = 2 * max(pooled(stock[result]), pooled(stock[None]))
            if pooled(found) > bound:
                yield f"{result} is {pooled(found):.2e} off, bound {bound:.2e}"

    for seed in range(DRAWS):  # errors are draws of chance: under suspicion, more of them
        for what in batches:
            found_both = measured(name, what, dtype, seed, using)
            for kept, found in zip((stock, ours), found_both, strict=True):
                kept.setdefault(None, []).append(overall(found))
                for result, (_, error) in found.items():
                    kept.setdefault(result, []).append(error)
        if not list(suspicions()):
            return []
    return [f"in {DRAWS} draws: {line}" for line in suspicions()]


def pooled(values: list[float]) -> float:
    """Root-mean-square of several errors."""
    return math.sqrt(statistics.fmean(value**2 for value in values))
