"""torch's own attention function on the fused kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llama_fast.ops import _checks
from llama_fast.ops._subclasses import causal_bias, is_causal_bias, overridable
from llama_fast.ops.attention import attention

if TYPE_CHECKING:
    from torch.nn.attention.bias import CausalBias


@overridable
def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(scale * q k' + mask) v: `torch.nn.functional.scaled_dot_product_attention`, fused.

    Signature and semantics are torch's.

    Args:
        query: (...,H,S,D), any number of leading dimensions, or (S,D); float64, float32, bfloat16
            or float16.
        key: (...,K,T,D), leading dimensions broadcastable to those of `query`; dtype of `query`.
        value: (...,K,T,Dv); dtype of `query`.
        attn_mask: broadcastable to (...,H,S,T). bool: True where query i may see key j; float:
            added to the scores. torch's `causal_upper_left(S, T)` and `causal_lower_right(S, T)`
            are accepted too.
        dropout_p: probability of dropping an attention weight, in [0, 1].
        is_causal: query i sees keys j <= i, both counted from the first (top-left aligned, unlike
            `attention`). Cannot be combined with `attn_mask`.
        scale: multiplies q . k; default 1 / sqrt(D).
        enable_gqa: allow fewer key heads than query heads (H a multiple of K).

    Returns:
        (...,H,S,Dv) in the dtype of `query`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number does not fit; the message names the argument.
    """
    for name, t in (("query", query), ("key", key), ("value", value)):
        _checks.check_float(name, t)
        if t.dim() < 2:
            raise ValueError(f"{name}: expected at least 2 dimensions, got {_checks.shape(t)}")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask: expected None with is_causal=True, got a tensor")
    bottom_right = False
    if is_causal_bias(attn_mask):
        is_causal = not (bottom_right := _is_bottom_right(attn_mask, query, key))
        attn_mask = None
    grouped = enable_gqa and query.dim() >= 3 and key.dim() >= 3
    try:
        own = -3 if grouped else -2  # dimensions from this one on are not broadcast
        lead = torch.broadcast_shapes(query.shape[:own], key.shape[:own], value.shape[:own])
    except RuntimeError as error:
        raise ValueError(
            f"query, key, value: expected leading dimensions that broadcast, got "
            f"{_checks.shape(query)}, {_checks.shape(key)}, {_checks.shape(value)}"
        ) from error
    q, k, v = (_four_dims(t, lead, own) for t in (query, key, value))
    bias = None
    if attn_mask is not None:
        _checks.check_mask("attn_mask", attn_mask)
        bias = attn_mask
        if bias.dim() > 4 or len(lead) != (1 if grouped else 2):
            heads = query.shape[-3:-2] if grouped else ()
            full = (*lead, *heads, query.shape[-2], key.shape[-2])
            bias = bias.expand(full).reshape(q.shape[0], q.shape[1], *full[-2:])
    causal, window = is_causal or bottom_right, None
    queries, keys = q.shape[2], k.shape[2]
    if is_causal and keys > queries:  # the keys after the last query are never seen
        k, v = k[:, :, :queries], v[:, :, :queries]
    elif is_causal and queries > keys:
        causal, window = False, (-1, queries - keys)
    out = attention(
        q, k, v, causal=causal, window=window, scale=scale, bias=bias, dropout_p=dropout_p
    )
    heads = query.shape[-3:-2] if grouped else ()
    return out.reshape(*lead, *heads, queries, v.shape[-1])


def _is_bottom_right(mask: CausalBias, query: torch.Tensor, key: torch.Tensor) -> bool:
    queries, keys = query.shape[-2], key.shape[-2]
    return causal_bias("attn_mask", mask, queries, keys) and queries != keys


def _four_dims(t: torch.Tensor, lead: torch.Size, own: int) -> torch.Tensor:
    """Return `t` as (batch, heads, rows, size), its dimensions before `own` expanded to `lead`."""
    t = t.expand(*lead, *t.shape[own:])
    while t.dim() < 4:
        t = t.unsqueeze(0)
    return t if t.dim() == 4 else t.flatten(0, t.dim() - 4)
