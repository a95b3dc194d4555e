"""Argument checks of the ops: each error names the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

from llama_fast._torch_internals import hides_values, is_wrapped
from llama_fast.ops._subclasses import is_causal_bias

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def shape(t: torch.Tensor) -> str:
    """The shape of `t` as text, such as (2, 3)."""
    return str(tuple(t.shape))


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a tensor that holds data, which torch's `CausalBias` does not."""
    if type(value) is torch.Tensor:
        return True
    return isinstance(value, torch.Tensor) and not is_causal_bias(value)


def check_float(name: str, value: object) -> None:
    """Check that `value` is a tensor of float64, float32, bfloat16 or float16."""
    if not is_tensor(value):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name}: expected float64, float32, bfloat16 or float16, got {value.dtype}"
        )


def check_mask(name: str, value: object) -> None:
    """Check that `value` is a tensor of bool or of a dtype that `check_float` accepts."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype != torch.bool and value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name}: expected bool (True takes part), or float64, float32, bfloat16 or float16 "
            f"(added to the scores), got {value.dtype}"
        )


def check_tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...], expected: str) -> None:
    """Check that `value` is a tensor of one of `dtypes`; `expected` lists them for the error."""
    if not is_tensor(value):
        raise TypeError(f"{name}: expected a tensor of {expected}, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")


def check_dim(name: str, t: torch.Tensor, dims: int | tuple[int, ...], layout: str) -> None:
    """Check the number of dimensions of `t`; `layout` is the expected shape, for the error."""
    allowed = (dims,) if isinstance(dims, int) else dims
    if t.dim() not in allowed:
        raise ValueError(f"{name}: expected shape {layout}, got {shape(t)}")


def check_shape(name: str, t: torch.Tensor, expected: tuple[int, ...], layout: str) -> None:
    """Check that `t` has the shape `expected`; `layout` names its dimensions, for the error."""
    if tuple(t.shape) != expected:
        raise ValueError(f"{name}: expected shape {layout} = {expected}, got {shape(t)}")


def check_same(name: str, t: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Check that `t` has the dtype and the device of `other`."""
    if t.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {t.dtype}")
    check_device(name, t, other_name, other)


def check_device(name: str, t: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Check that `t` is on the device of `other`."""
    if t.device != other.device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {other.device}, got {t.device}"
        )


def check_number(name: str, value: object, expected: str, ok: bool) -> None:
    """Raise unless `ok`, which says whether `value` is in the range that `expected` describes."""
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def number(name: str, value: Any, expected: str = "a number") -> Any:
    """Return `value` as a Python number (symbolic under torch.compile).

    NumPy and torch scalars are accepted.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is a tensor that requires a gradient, which would be lost.
    """
    if type(value) in (float, int) or isinstance(value, _NUMBERS):
        return value
    if getattr(value, "shape", None) == () and _number_type(value) in ("int", "float"):
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise ValueError(f"{name}: expected {expected}, got a tensor that requires a gradient")
        return value.item()
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


def integer(name: str, value: Any, expected: str = "an int") -> Any:
    """Return `value` as a Python int (symbolic under torch.compile).

    NumPy and torch scalars are accepted.

    Raises:
        TypeError: `value` is not an integer, or is a bool.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if getattr(value, "shape", None) == () and _number_type(value) == "int":
        return value.item()
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


def pair(value: Any) -> tuple[Any, Any] | None:
    """Return the elements of a tuple, list, array or tensor of length 2; None for anything else."""
    if isinstance(value, (tuple, list)) or getattr(value, "shape", None) == (2,):
        return tuple(value) if len(value) == 2 else None
    return None


_NUMBERS = (float, int, torch.SymInt, torch.SymFloat)


def _number_type(scalar: Any) -> str:
    """ "int" or "float" for a torch or NumPy scalar of such a dtype, "" for anything else."""
    dtype = getattr(scalar, "dtype", None)
    if isinstance(dtype, torch.dtype):
        if dtype.is_floating_point:
            return "float"
        return "" if dtype.is_complex or dtype == torch.bool else "int"
    return {"i": "int", "u": "int", "f": "float"}.get(getattr(dtype, "kind", ""), "")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_targets(target: torch.Tensor, classes: int, ignore_index: int) -> None:
    """Raise IndexError for the first target outside [0, classes) that is not `ignore_index`.

    Targets whose values cannot be read here are not checked: those traced by torch.compile,
    wrapped by a torch.func transform, or on the meta device. The operators check them again.
    """
    if torch.compiler.is_compiling() or target.is_meta or hides_values() or is_wrapped(target):
        return
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bad.any():
        position = bad.nonzero()[0].tolist()
        value = target[tuple(position)].item()
        raise IndexError(
            f"target: expected class indices in [0, {classes}) or ignore_index ({ignore_index}), "
            f"got {value} at position {tuple(position)}"
        )
