"""How far a model's numbers are from the truth: the same model, and the same weights, in float64.

transformers' models compute parts of themselves in float32 whatever their dtype. For the truth
these parts are computed in float64 too.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import llama_fast
from tests.integrations import zoo
from tests.integrations.zoo import Inputs

Results = dict[str, torch.Tensor]
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
    name: str, what: str, dtype: torch.dtype, seed: int = 0
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """:func:`errors` of stock and of patched on one batch of an architecture."""
    more = zoo.ZOO[name].all_experts if dtype is torch.bfloat16 else {}
    model = zoo.build(name, dtype, seed, **more)
    inputs = zoo.batches(name, model)[what]
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    right = truth(model, inputs)
    stock = errors(results(model, inputs), right)
    with llama_fast.patch(model):
        return stock, errors(results(model, inputs), right)
