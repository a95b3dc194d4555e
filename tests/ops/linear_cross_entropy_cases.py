"""Inputs of linear cross-entropy tests, described in a line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.ops.criterion import Results, gradients, to_dtype


@dataclass(frozen=True)
class Case:
    """One problem: the shapes of input (tokens..., E) and weight (V, E), and the options.

    `grad_lse` sends a gradient into the lse of the statistics too.
    """

    why: str
    tokens: tuple[int, ...] = (20,)
    E: int = 16
    V: int = 37
    ignored: bool = False
    bias: bool = False
    class_weights: bool = False
    scale: float = 1.0  # of the input
    weight_scale: float = 1.0
    bias_scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    grad_lse: bool = False

    @property
    def id(self) -> str:
        return self.why.partition(":")[0].replace(" ", "-").replace(",", "")


def make_tensors(case: Case, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*case.tokens, case.E, generator=g, dtype=torch.float64) * case.scale
    w = torch.randn(case.V, case.E, generator=g, dtype=torch.float64) * case.weight_scale
    target = torch.randint(0, case.V, case.tokens, generator=g)
    if case.ignored:
        target[torch.rand(case.tokens, generator=g) < 1 / 3] = -100
    tensors = {"input": x, "linear_weight": w, "target": target}
    if case.bias:
        bias = torch.randn(case.V, generator=g, dtype=torch.float64)
        tensors["linear_bias"] = bias * case.bias_scale
    if case.class_weights:
        tensors["weight"] = torch.rand(case.V, generator=g, dtype=torch.float64) + 0.1
    return tensors


def runner(case: Case) -> Callable[..., Results]:
    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        arguments = to_dtype(make_tensors(case, seed), inputs_dtype, dtype)
        leaves = {
            name: arguments[name].requires_grad_()
            for name in ("input", "linear_weight", "linear_bias")
            if name in arguments
        }
        result = function(**arguments, **case.options)
        results = {}
        if case.options.get("return_stats"):
            result, stats = result
            results = {"lse": stats.lse.detach(), "z_loss": stats.z_loss}
        results["loss"] = result.detach()
        outputs = [result, stats.lse] if case.grad_lse else [result]
        return results | gradients(outputs, leaves, torch.bfloat16, seed)

    return run
