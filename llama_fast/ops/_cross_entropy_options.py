"""Checks of the options that cross_entropy and linear_cross_entropy share."""

from __future__ import annotations

import math

import torch

from llama_fast.ops import _checks
from llama_fast.reference.cross_entropy import REDUCTIONS, CrossEntropyOptions

INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_class_weight(weight: torch.Tensor, input: torch.Tensor, classes: int) -> None:
    """Check that `weight` is floating point (V,), on the device of `input`, without gradient.

    Raises:
        TypeError: `weight` is not a tensor, or not of a floating-point dtype.
        ValueError: `weight` has another shape or device, or requires a gradient.
    """
    _checks.check_float("weight", weight)
    _checks.check_shape("weight", weight, (classes,), "(V,)")
    _checks.check_device("weight", weight, "input", input)
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("weight: expected a tensor that does not require grad")


def checked_options(
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    softcap: float | None,
    z_loss: float,
) -> CrossEntropyOptions:
    """Check the user's options and return them in the form that operators and backends take.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of its range.
    """
    if type(ignore_index) is not int:
        ignore_index = _checks.integer("ignore_index", ignore_index)
    if type(label_smoothing) is not float:
        label_smoothing = _checks.number("label_smoothing", label_smoothing)
    if type(z_loss) is not float:
        z_loss = _checks.number("z_loss", z_loss)
    if reduction not in REDUCTIONS:
        _checks.check_choice("reduction", reduction, REDUCTIONS)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    if softcap is None:
        softcap = 0.0
    else:
        softcap = _checks.number("softcap", softcap)
        if not 0.0 < softcap < math.inf:
            raise ValueError(f"softcap: expected None or a positive number, got {softcap!r}")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss: expected a finite number that is not negative, got {z_loss!r}")
    return CrossEntropyOptions(
        weight, ignore_index, REDUCTIONS.index(reduction), label_smoothing, softcap, z_loss
    )
