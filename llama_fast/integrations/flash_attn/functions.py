"""flash-attn's functions for sequences of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llama_fast.integrations.flash_attn import checks
from llama_fast.integrations.flash_attn.dropout_pattern import DropoutPattern
from llama_fast.ops.attention import attention


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of tensors in flash-attn's layout (B,S,H,D), which are not copied.

    Args:
        q: queries (B,S,H,D); float64, float32, bfloat16 or float16. Any strides.
        k: keys (B,T,K,D) with H a multiple of K; dtype of `q`.
        v: values (B,T,K,Dv); dtype of `q`.
        dropout_p: probability of dropping an attention weight; 0.0 for evaluation.
        softmax_scale: multiplies q . k; default 1 / sqrt(D).
        causal: whether query i sees only the keys j <= i + T - S (the last query is aligned with
            the last key).
        window_size: (left, right): query i sees the keys from i + T - S - left to
            i + T - S + right; -1 for no bound. `causal` makes right 0.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c); 0.0 for none.
        alibi_slopes: (H,) or (B,H) float; adds ``-slope * |i + T - S - j|``. Differentiable here.
        deterministic: has no effect; all kernels are deterministic.
        return_attn_probs: also return softmax_lse and S_dmask.

    Returns:
        out (B,S,H,Dv), zero for queries that see no key. With `return_attn_probs` the triple (out,
        softmax_lse, S_dmask). softmax_lse is the log of the softmax's denominator, (B,H,S), in
        float32 (float64 for float64 input), -inf for queries that see no key, differentiable here.
        S_dmask, as in flash-attn, is empty without dropout; with it, S_dmask (B,H,S,T) holds the
        probabilities before dropout, negative where they were dropped, without gradient.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number does not fit; the message names the argument.
    """
    checks.heads(q, k, v, ("(B,S,H,D)", "(B,T,K,D)", "(B,T,K,Dv)"))
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k: expected the batch size of q, {q.shape[0]}, got {k.shape[0]}")
    options = checks.options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if not return_attn_probs:
        return attention(q, k, v, dropout_p=dropout_p, **options).transpose(1, 2)
    pattern = DropoutPattern(q.device, dropout_p)
    out, lse = attention(q, k, v, dropout_p=dropout_p, return_lse=True, **options)
    return out.transpose(1, 2), lse, pattern.dense(q, k, options)


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_func` of queries, keys and values in one tensor (B,S,3,H,D)."""
    checks.packed("qkv", qkv, 3, 2, "(B,S,3,H,D)")
    q, k, v = qkv.unbind(2)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_func` of queries (B,S,H,D), and keys and values in one (B,T,2,K,D)."""
    checks.packed("kv", kv, 2, 2, "(B,T,2,K,D)")
    k, v = kv.unbind(2)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
