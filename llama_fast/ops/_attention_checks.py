"""Check the arguments of `attention` and `attention_decode`, and resolve their defaults.

A check that returns a value returns the argument in the form that `AttentionOptions` stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from llama_fast.ops import _checks
from llama_fast.ops._autocast import autocast_dtype

Window = int | Sequence[int] | None


def is_plain_call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether q, k and v are in the common form, which needs no further check.

    The common form: tensors (B,H,S,D), (B,K,T,D), (B,K,T,D) of one float dtype, outside autocast.
    Skipping the other checks saves 10 microseconds per call.
    """
    if not (type(q) is type(k) is type(v) is torch.Tensor) or not (q.is_cpu or q.is_cuda):
        return False
    if (
        torch.is_autocast_enabled("cpu" if q.is_cpu else "cuda")
        or q.dtype not in _checks.FLOAT_DTYPES
    ):
        return False
    if not (q.dtype is k.dtype is v.dtype) or not q.device == k.device == v.device:
        return False
    q_shape, k_shape = q.shape, k.shape
    return (
        len(q_shape) == len(k_shape) == 4
        and k_shape == v.shape
        and q_shape[0] == k_shape[0]
        and q_shape[3] == k_shape[3]
        and k_shape[1] > 0
        and q_shape[1] % k_shape[1] == 0
    )


def autocast(name: str, t: torch.Tensor) -> torch.Tensor:
    """Cast `t` to autocast's dtype if torch.autocast is on: attention is one of its 16-bit ops."""
    _checks.check_float(name, t)
    dtype = autocast_dtype(t.device.type)
    return t if dtype is None or t.dtype == torch.float64 else t.to(dtype)


def check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: bool) -> None:
    """Check that q, k and v have the shapes that `attention` documents."""
    layouts = (
        ("(N,H,D)", "(M,K,D)", "(M,K,Dv)") if packed else ("(B,H,S,D)", "(B,K,T,D)", "(B,K,T,Dv)")
    )
    for name, t, layout in zip(("q", "k", "v"), (q, k, v), layouts, strict=True):
        _checks.check_dim(name, t, 3 if packed else 4, layout)
    _checks.check_same("k", k, "q", q)
    _checks.check_same("v", v, "q", q)
    check_key_shapes("k", k, "v", v, q)
    if not packed and k.shape[0] != q.shape[0]:
        raise ValueError(f"k: expected the batch size of q, {q.shape[0]}, got {k.shape[0]}")


def check_key_shapes(
    k_name: str, k: torch.Tensor, v_name: str, v: torch.Tensor, q: torch.Tensor
) -> None:
    """Check head size and head count of the keys against `q`, and the values against the keys."""
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{k_name}: expected the head size of q, {q.shape[-1]}, got {k.shape[-1]}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"{v_name}: expected the shape of {k_name} but for the last dimension, "
            f"{_checks.shape(k)}, got {_checks.shape(v)}"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if (kv_heads == 0 and heads != 0) or (kv_heads != 0 and heads % kv_heads != 0):
        raise ValueError(
            f"{k_name}: expected a number of heads that divides the {heads} heads of q, "
            f"got {kv_heads}"
        )


def check_offsets(
    q: torch.Tensor, k: torch.Tensor, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None
) -> None:
    """Check that the offsets of packed sequences are integers that rise from 0 to the row count."""
    for name, cu, rows in (("cu_seqlens_q", cu_q, q.shape[0]), ("cu_seqlens_k", cu_k, k.shape[0])):
        _checks.check_tensor(name, cu, (torch.int32, torch.int64), "int32 or int64")
        assert cu is not None
        _checks.check_device(name, cu, "q", q)
        if cu.dim() != 1 or cu.numel() == 0:
            raise ValueError(f"{name}: expected shape (sequences + 1,), got {_checks.shape(cu)}")
        # In a compiled graph the values are unknown; the kernel checks them there.
        if not torch.compiler.is_compiling() and cu.device.type == "cpu":
            _check_offset_values(name, cu.tolist(), rows)
    assert cu_q is not None and cu_k is not None
    if cu_q.numel() != cu_k.numel():
        raise ValueError(
            f"cu_seqlens_k: expected as many offsets as cu_seqlens_q, {cu_q.numel()}, "
            f"got {cu_k.numel()}"
        )


def _check_offset_values(name: str, offsets: list[int], rows: int) -> None:
    if offsets[0] != 0 or offsets[-1] != rows:
        raise ValueError(
            f"{name}: expected offsets from 0 to the number of rows, {rows}, "
            f"got {offsets[0]} to {offsets[-1]}"
        )
    for i, (a, b) in enumerate(pairwise(offsets)):
        if b < a:
            raise ValueError(
                f"{name}: expected offsets that do not decrease, got {a} then {b} "
                f"at position {i + 1}"
            )


def check_scale(scale: Any, head_size: int) -> float:
    """Return the factor of q . k; the default is 1 / sqrt(head_size)."""
    if scale is None:
        return 1.0 / math.sqrt(head_size) if head_size else 1.0
    scale = _checks.number("scale", scale)
    _checks.check_number("scale", scale, "a finite number", math.isfinite(scale))
    return float(scale)


def check_softcap(softcap: Any) -> float:
    """Return the softcap, 0 for None."""
    if softcap is None:
        return 0.0
    softcap = _checks.number("softcap", softcap)
    ok = softcap > 0 and math.isfinite(softcap)
    _checks.check_number("softcap", softcap, "a positive finite number or None", ok)
    return softcap


def check_dropout(dropout_p: Any) -> float:
    """Return the probability of dropping an attention weight."""
    if type(dropout_p) is float and 0 <= dropout_p <= 1:  # most calls, checked fast
        return dropout_p
    dropout_p = _checks.number("dropout_p", dropout_p)
    _checks.check_number("dropout_p", dropout_p, "a probability in [0, 1]", 0 <= dropout_p <= 1)
    return dropout_p


def check_bias(bias: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return `bias` with four dimensions, in a dtype that the kernels read."""
    _checks.check_mask("bias", bias)
    _checks.check_device("bias", bias, "q", q)
    full = (*q.shape[:3], k.shape[2])
    fits = bias.dim() <= 4 and all(
        b in (1, f) for b, f in zip(reversed(bias.shape), reversed(full), strict=False)
    )
    if not fits:
        raise ValueError(
            f"bias: expected a shape that broadcasts to (B,H,S,T) = {tuple(full)}, "
            f"got {_checks.shape(bias)}"
        )
    if bias.dtype != torch.bool and (bias.dtype == torch.float64) != (q.dtype == torch.float64):
        bias = bias.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return bias if bias.dim() == 4 else bias[(None,) * (4 - bias.dim())]


def check_padding_mask(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> None:
    """Check that `mask` is a bool tensor (B,T)."""
    name = "key_padding_mask"
    _checks.check_tensor(name, mask, (torch.bool,), "bool")
    _checks.check_shape(name, mask, (q.shape[0], k.shape[2]), "(B,T)")
    _checks.check_device(name, mask, "q", q)


def check_slopes(slopes: torch.Tensor, q: torch.Tensor, batch: int) -> torch.Tensor:
    """Return `slopes` as (1,H) or (B,H)."""
    _checks.check_float("alibi_slopes", slopes)
    _checks.check_device("alibi_slopes", slopes, "q", q)
    heads = q.shape[1]
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes: expected shape (H,) = ({heads},) or (B,H) = ({batch}, {heads}), "
            f"got {_checks.shape(slopes)}"
        )
    return slopes.unsqueeze(0) if slopes.dim() == 1 else slopes


def check_sinks(sinks: torch.Tensor, q: torch.Tensor) -> None:
    """Check that `sinks` is a float tensor (H,)."""
    _checks.check_float("sinks", sinks)
    _checks.check_shape("sinks", sinks, (q.shape[1],), "(H,)")
    _checks.check_device("sinks", sinks, "q", q)


def check_window(window: Window, causal: bool) -> tuple[int, int]:
    """Return how many keys a query sees before and after its own position; -1 for all."""
    if window is None:
        return -1, -1
    expected = "None, an int or a pair of ints"
    sides = _checks.pair(window)
    if sides is None:
        width = _checks.integer("window", window, expected)
        _checks.check_number("window", width, "at least 1", width >= 1)
        return width - 1, 0 if causal else width - 1
    left, right = (_checks.integer("window", side, expected) for side in sides)
    if min(left, right) < -1:
        raise ValueError(f"window: expected sides of at least -1, got {(left, right)}")
    return left, right
