"""`torch.nn.LinearCrossEntropyLoss` on the fused kernel, for every version of torch."""

from __future__ import annotations

from typing import Any

import torch

from llama_fast.ops.linear_cross_entropy import linear_cross_entropy
from llama_fast.ops.torch_functions import accelerate

LinearCrossEntropyLoss: Any

if hasattr(torch.nn, "LinearCrossEntropyLoss"):

    class _Subclass(torch.nn.LinearCrossEntropyLoss):
        """`torch.nn.LinearCrossEntropyLoss`: a linear head and its cross-entropy in one.

        ``LinearCrossEntropyLoss(in_features, num_classes, bias=False, reduction="mean", ...)``
        keeps the head as `linear`. torch computes calls with several `out_features`, with class
        probabilities as targets, or with `options`.
        """

        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            """The loss of `input` (..., E) for class indices `target` (...)."""
            with accelerate():
                return super().forward(input, target)

    LinearCrossEntropyLoss = _Subclass
else:

    class _Backport(torch.nn.Module):
        """A linear head and its cross-entropy in one, as `torch.nn` has it since 2.13."""

        def __init__(
            self,
            in_features: int,
            num_classes: int,
            *,
            bias: bool = False,
            device: Any = None,
            dtype: torch.dtype | None = None,
            reduction: str = "mean",
            weight: torch.Tensor | None = None,
            ignore_index: int | None = None,
            label_smoothing: float = 0.0,
        ) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(in_features, num_classes, bias, device, dtype)
            self.register_buffer("weight", weight)
            self.num_classes, self.reduction = num_classes, reduction
            self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            """The loss of `input` (..., E) for class indices `target` (...)."""
            loss = linear_cross_entropy(
                input,
                self.linear.weight,
                target,
                linear_bias=self.linear.bias,
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=-100 if self.ignore_index is None else self.ignore_index,
                label_smoothing=self.label_smoothing,
            )
            assert isinstance(loss, torch.Tensor)
            return loss.to(input.dtype)

    LinearCrossEntropyLoss = _Backport
LinearCrossEntropyLoss.__name__ = LinearCrossEntropyLoss.__qualname__ = "LinearCrossEntropyLoss"
