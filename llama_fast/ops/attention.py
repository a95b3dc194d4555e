"""Attention: softmax(scale * q k' + bias) v without ever holding the score matrix.

Formulas: Vaswani et al., "Attention is all you need" (2017); the tiled forward and backward are
those of Dao et al., "FlashAttention" (2022); ALiBi is Press et al. (2022); attention sinks, one
extra logit per head, are those of gpt-oss (2025); the score softcap is that of Gemma 2 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch

from llama_fast import reference
from llama_fast.ops import _checks, stock
from llama_fast.ops._attention_rules import call_attention
from llama_fast.ops._autograd import needs_plain_torch
from llama_fast.ops._subclasses import CausalBias, causal_bias, overridable
from llama_fast.ops.backends.choice import choose

Window = int | Sequence[int] | None


@overridable
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window: Window = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """Fused attention with grouped heads, masks, biases, packed sequences and dropout.

    The score of query i and key j is ``scale * q_i . k_j``, then capped, then biased. Query i
    stands beside key ``i + T - S`` (the last query beside the last key), so decoding with a
    cache needs no mask. Options that are numbers may be NumPy's or torch's scalars, too.

    Args:
        q: queries (B,H,S,D), or packed (N,H,D); float64, float32, bfloat16 or float16. Any
            strides: a transposed (B,S,H,D) view costs no copy.
        k: keys (B,K,T,D) with H a multiple of K, or packed (M,K,D); dtype of `q`.
        v: values (B,K,T,Dv), or packed (M,K,Dv); dtype of `q`.
        causal: query i sees the keys j <= i + T - S.
        window: keys seen around i + T - S. ``w``: the last w keys (and, unless causal, the next
            w - 1). ``(left, right)``: that many to each side, -1 for all.
        scale: multiplies q . k; default 1 / sqrt(D).
        softcap: c > 0 turns each scaled product x into c * tanh(x / c).
        bias: broadcastable to (B,H,S,T). bool: True takes part. float: added to the scores;
            differentiable. Or torch's `causal_upper_left` or `causal_lower_right` of (S,T). Not
            with packed sequences.
        key_padding_mask: bool (B,T), True for keys to ignore. Not with packed sequences.
        alibi_slopes: (H,) or (B,H) float; adds ``-slope * |i + T - S - j|``. Differentiable.
        sinks: (H,) float; one more logit per head in the softmax that carries no value.
            Differentiable.
        cu_seqlens_q: int32 or int64 (sequences + 1,): offsets of the packed query sequences,
            from 0 to N. Marks the packed form.
        cu_seqlens_k: the same for the keys, from 0 to M; default `cu_seqlens_q`.
        dropout_p: probability of dropping an attention weight, in [0, 1]; the others are scaled
            by 1 / (1 - p). Drawn from torch's default generator: `torch.manual_seed` repeats it.
        return_lse: also return the log of the softmax's denominator. Differentiable.

    Returns:
        out (B,H,S,Dv), or packed (N,H,Dv), in the dtype of `q`; rows that see no key are zero.
        With `return_lse` a pair (out, lse), lse (B,H,S), or packed (N,H), float32 (float64 for
        float64 input), -inf where no key is seen.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or numbers that do not fit; names the argument.

    Example:
        >>> q = torch.randn(1, 8, 128, 64); k = v = torch.randn(1, 2, 128, 64)
        >>> llama_fast.attention(q, k, v, causal=True).shape
        torch.Size([1, 8, 128, 64])
    """
    packed = cu_seqlens_q is not None
    if packed or not _ordinary(q, k, v):
        q, k, v = (_autocast(name, t) for name, t in (("q", q), ("k", k), ("v", v)))
        _check_tensors(q, k, v, packed)
    if packed:
        if bias is not None or key_padding_mask is not None:
            name = "bias" if bias is not None else "key_padding_mask"
            raise ValueError(f"{name}: expected None with packed sequences, got a tensor")
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        batch = _check_offsets(q, k, cu_seqlens_q, cu_seqlens_k)
    else:
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_q: expected a tensor beside cu_seqlens_k, got None")
        batch = q.shape[0]
    scale, softcap, dropout_p = _numbers(scale, softcap, dropout_p)
    top_left = False
    if isinstance(bias, CausalBias):
        top_left = not causal_bias("bias", bias, q.shape[2], k.shape[2])
        bias, causal = None, causal or not top_left
    if bias is not None:
        bias = _check_bias(bias, q, k)
    if key_padding_mask is not None:
        _checks.check_tensor("key_padding_mask", key_padding_mask, (torch.bool,), "bool")
        _checks.check_shape("key_padding_mask", key_padding_mask, (batch, k.shape[2]), "(B,T)")
        _checks.check_device("key_padding_mask", key_padding_mask, "q", q)
    if alibi_slopes is not None:
        alibi_slopes = _check_slopes(alibi_slopes, q, batch)
    if sinks is not None:
        _checks.check_float("sinks", sinks)
        _checks.check_shape("sinks", sinks, (q.shape[1],), "(H,)")
        _checks.check_device("sinks", sinks, "q", q)
    left, right = _window_sides(window, causal)
    if top_left and (later := q.shape[2] - k.shape[2]) > 0:  # query i stands `later` keys before i
        right = later if right < 0 else min(right, later)
    elif top_left:
        bias = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]

    backend = choose("attention", q)
    seed = None
    if dropout_p > 0:
        # A tensor rather than a number, so that a compiled graph draws anew at each call.
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
    if backend in ("cpu", "triton") and not needs_plain_torch():
        out, lse, _ = call_attention(
            q,
            k,
            v,
            bias,
            key_padding_mask,
            alibi_slopes,
            sinks,
            cu_seqlens_q,
            cu_seqlens_k,
            seed,
            causal,
            left,
            right,
            _default_scale(q, scale),
            softcap or 0.0,
            dropout_p,
        )
        return (out, lse) if return_lse else out
    options: dict[str, Any] = {
        "causal": causal,
        "window": None if window is None else (left, right),
        "scale": scale,
        "softcap": softcap,
        "bias": bias,
        "key_padding_mask": key_padding_mask,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "dropout_p": dropout_p,
        "return_lse": return_lse,
    }
    if backend == "torch":
        return stock.attention(q, k, v, **options)
    device = q.device.type
    known = torch.amp.is_autocast_available(device)
    # Autocast would round inside the formula.
    with torch.autocast(device, enabled=False) if known else nullcontext():
        return reference.attention(q, k, v, dropout_seed=seed, **options)


# --- checks ----------------------------------------------------------------------------------


def _ordinary(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether these plainly fit, outside autocast: spares most calls 10 microseconds of checks."""
    if not (type(q) is type(k) is type(v) is torch.Tensor) or not (q.is_cpu or q.is_cuda):
        return False
    if (
        torch.is_autocast_enabled("cpu" if q.is_cpu else "cuda")
        or q.dtype not in _checks.FLOAT_DTYPES
    ):
        return False
    if not (q.dtype is k.dtype is v.dtype) or not q.device == k.device == v.device:
        return False
    queries, keys = q.shape, k.shape
    return (
        len(queries) == len(keys) == 4
        and keys == v.shape
        and queries[0] == keys[0]
        and queries[3] == keys[3]
        and keys[1] > 0
        and queries[1] % keys[1] == 0
    )


def _autocast(name: str, t: torch.Tensor) -> torch.Tensor:
    """`t` in the dtype of torch.autocast, where that is on: attention is one of its 16-bit ops."""
    _checks.check_float(name, t)
    device = t.device.type
    if t.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return t
    if torch.is_autocast_enabled(device):
        return t.to(torch.get_autocast_dtype(device))
    return t


def _check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: bool) -> None:
    layouts = (
        ("(N,H,D)", "(M,K,D)", "(M,K,Dv)") if packed else ("(B,H,S,D)", "(B,K,T,D)", "(B,K,T,Dv)")
    )
    for name, t, layout in zip(("q", "k", "v"), (q, k, v), layouts, strict=True):
        _checks.check_dim(name, t, 3 if packed else 4, layout)
    _checks.check_same("k", k, "q", q)
    _checks.check_same("v", v, "q", q)
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k: expected the head size of q, {q.shape[-1]}, got {k.shape[-1]}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"v: expected the shape of k but for the last dimension, {_checks.shape(k)}, "
            f"got {_checks.shape(v)}"
        )
    if not packed and k.shape[0] != q.shape[0]:
        raise ValueError(f"k: expected the batch size of q, {q.shape[0]}, got {k.shape[0]}")
    heads, kv_heads = q.shape[1], k.shape[1]
    if (kv_heads == 0 and heads != 0) or (kv_heads != 0 and heads % kv_heads != 0):
        raise ValueError(
            f"k: expected a number of heads that divides the {heads} heads of q, got {kv_heads}"
        )


def _check_offsets(
    q: torch.Tensor, k: torch.Tensor, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None
) -> int:
    """Check the offsets of packed sequences; returns the number of sequences."""
    for name, cu, rows in (("cu_seqlens_q", cu_q, q.shape[0]), ("cu_seqlens_k", cu_k, k.shape[0])):
        _checks.check_tensor(name, cu, (torch.int32, torch.int64), "int32 or int64")
        assert cu is not None
        _checks.check_device(name, cu, "q", q)
        if cu.dim() != 1 or cu.numel() == 0:
            raise ValueError(f"{name}: expected shape (sequences + 1,), got {_checks.shape(cu)}")
        if not torch.compiler.is_compiling() and cu.device.type == "cpu":
            # In a compiled graph the values are unknown; the kernel checks them there.
            offsets = cu.tolist()
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
    assert cu_q is not None and cu_k is not None
    if cu_q.numel() != cu_k.numel():
        raise ValueError(
            f"cu_seqlens_k: expected as many offsets as cu_seqlens_q, {cu_q.numel()}, "
            f"got {cu_k.numel()}"
        )
    return cu_q.numel() - 1


def _numbers(scale: Any, softcap: Any, dropout_p: Any) -> tuple[Any, Any, Any]:
    """These three as Python's numbers, or as they are where they are None."""
    if scale is not None:
        scale = _checks.number("scale", scale)
        _checks.check_number("scale", scale, "a finite number", math.isfinite(scale))
    if softcap is not None:
        softcap = _checks.number("softcap", softcap)
        ok = softcap > 0 and math.isfinite(softcap)
        _checks.check_number("softcap", softcap, "a positive finite number or None", ok)
    dropout_p = _checks.number("dropout_p", dropout_p)
    _checks.check_number("dropout_p", dropout_p, "a probability in [0, 1]", 0 <= dropout_p <= 1)
    return scale, softcap, dropout_p


def _check_bias(bias: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """`bias` with four dimensions, in a dtype that the kernels read."""
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


def _check_slopes(slopes: torch.Tensor, q: torch.Tensor, batch: int) -> torch.Tensor:
    """`slopes` as (1,H) or (B,H)."""
    _checks.check_float("alibi_slopes", slopes)
    _checks.check_device("alibi_slopes", slopes, "q", q)
    heads = q.shape[1]
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes: expected shape (H,) = ({heads},) or (B,H) = ({batch}, {heads}), "
            f"got {_checks.shape(slopes)}"
        )
    return slopes.unsqueeze(0) if slopes.dim() == 1 else slopes


def _window_sides(window: Window, causal: bool) -> tuple[int, int]:
    """How many keys are seen to the left and right of a query's own; -1 for all."""
    if window is None:
        return -1, -1
    expected = "None, an int or a pair of ints"
    sides = _checks.pair(window)
    if sides is None:
        last = _checks.integer("window", window, expected)
        _checks.check_number("window", last, "at least 1", last >= 1)
        return last - 1, 0 if causal else last - 1
    left, right = (_checks.integer("window", side, expected) for side in sides)
    if min(left, right) < -1:
        raise ValueError(f"window: expected sides of at least -1, got {(left, right)}")
    return left, right


def _default_scale(q: torch.Tensor, scale: float | None) -> float:
    if scale is not None:
        return float(scale)
    return 1.0 / math.sqrt(q.shape[-1]) if q.shape[-1] else 1.0
