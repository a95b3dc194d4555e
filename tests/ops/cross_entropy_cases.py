"""Inputs of cross-entropy tests, described in a line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.ops.criterion import Results, gradients, to_dtype

IGNORED = -100


@dataclass(frozen=True)
class Case:
    """One cross-entropy problem and why it is worth testing.

    `shape` is that of the logits. `targets` says what they are: "indices", "some ignored" (a third
    of the indices), or "probabilities". `class_weights` adds a weight for each class, `spread`
    multiplies the normally distributed logits. `grad_lse` sends a gradient into the lse of the
    statistics too.
    """

    why: str
    shape: tuple[int, ...] = (12, 37)
    targets: str = "indices"
    class_weights: bool = False
    spread: float = 3.0
    options: dict[str, Any] = field(default_factory=dict)
    grad_lse: bool = False

    @property
    def id(self) -> str:
        """Name of the test: the reason, up to its colon."""
        return self.why.partition(":")[0].replace(" ", "-").replace(",", "")


def make_tensors(case: Case, seed: int) -> dict[str, torch.Tensor]:
    """The tensor arguments in float64 (indices int64)."""
    g = torch.Generator(torch.get_default_device()).manual_seed(seed)
    class_dim = 0 if len(case.shape) == 1 else 1
    V = case.shape[class_dim]
    tokens = case.shape[:class_dim] + case.shape[class_dim + 1 :]
    logits = case.spread * torch.randn(case.shape, generator=g, dtype=torch.float64)
    if case.targets == "probabilities":
        target = torch.randn(case.shape, generator=g, dtype=torch.float64).softmax(class_dim)
    else:
        target = torch.randint(0, V, tokens, generator=g)
        if case.targets == "some ignored":
            ignored = torch.rand(tokens, generator=g) < 1 / 3
            target = target.masked_fill(ignored, case.options.get("ignore_index", IGNORED))
    tensors = {"input": logits, "target": target}
    if case.class_weights:
        tensors["weight"] = torch.rand(V, generator=g, dtype=torch.float64) + 0.1
    return tensors


def runner(case: Case) -> Callable[..., Results]:
    """The `run` of `criterion.check`: the loss and every gradient of one call."""

    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        arguments = to_dtype(make_tensors(case, seed), inputs_dtype, dtype)
        leaves = {"input": arguments["input"].requires_grad_()}
        if case.targets == "probabilities":
            leaves["target"] = arguments["target"].requires_grad_()
        result = function(**arguments, **case.options)
        if case.options.get("return_stats"):
            loss, stats = result
            results = {"loss": loss.detach(), "lse": stats.lse.detach(), "z_loss": stats.z_loss}
        else:
            loss = result
            results = {"loss": loss.detach()}
        outputs = [loss, stats.lse] if case.grad_lse else [loss]
        return results | gradients(outputs, leaves, torch.bfloat16, seed)

    return run
