"""Attention: softmax(scale * q k' + bias) v without ever storing the whole score matrix.

Formulas: Vaswani et al., "Attention is all you need" (2017). Tiled forward and backward: Dao et
al., "FlashAttention" (2022). ALiBi: Press et al. (2022). Attention sinks, one extra logit per head:
gpt-oss (2025). Softcap of the scores: Gemma 2 (2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor

from llama_fast import reference
from llama_fast.ops import _attention_checks as checks
from llama_fast.ops import stock
from llama_fast.ops._attention_checks import Window
from llama_fast.ops._attention_rules import call_attention
from llama_fast.ops._autocast import without_autocast
from llama_fast.ops._autograd import needs_plain_torch
from llama_fast.ops._subclasses import causal_bias, is_causal_bias, overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.reference import AttentionOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Options(TypedDict, total=False):
    """The keyword arguments of `attention` that do not change what it returns."""

    causal: bool
    window: Window
    scale: float | None
    softcap: float | None
    bias: Tensor | None
    key_padding_mask: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    dropout_p: float


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **options: Unpack[_Options]
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **options: Unpack[_Options]
) -> Tensor | tuple[Tensor, Tensor]: ...
@overridable
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k' + bias) v, with grouped heads, masks, packed sequences and dropout.

    The score of query i and key j is ``scale * q_i . k_j``, then soft-capped, then biased. Query i
    has the position of key ``i + T - S``, so the last query is aligned with the last key and
    decoding with a cache needs no mask. Numbers may also be NumPy or torch scalars.

    Args:
        q: queries (B,H,S,D), or packed (N,H,D); float64, float32, bfloat16 or float16. Any
            strides: a transposed (B,S,H,D) view costs no copy.
        k: keys (B,K,T,D) with H a multiple of K, or packed (M,K,D); dtype of `q`.
        v: values (B,K,T,Dv), or packed (M,K,Dv); dtype of `q`.
        causal: whether query i sees only the keys j <= i + T - S.
        window: which keys query i sees around its position i + T - S. ``w``: its own key and the
            w - 1 before it (and, unless causal, the w - 1 after it). ``(left, right)``: so many
            keys before and after its own, -1 for all. Default: all keys.
        scale: multiplies q . k; default 1 / sqrt(D).
        softcap: c > 0 turns each scaled product x into c * tanh(x / c).
        bias: broadcastable to (B,H,S,T). bool: True where query i may see key j. float: added to
            the scores; differentiable. torch's `causal_upper_left` and `causal_lower_right` are
            accepted too. None for packed sequences.
        key_padding_mask: bool (B,T), True for keys to ignore. None for packed sequences.
        alibi_slopes: (H,) or (B,H) float; adds ``-slope * |i + T - S - j|``. Differentiable.
        sinks: (H,) float; one more logit per head in the softmax, without a value.
            Differentiable.
        cu_seqlens_q: int32 or int64 (sequences + 1,): offsets of the packed query sequences,
            from 0 to N. If given, q, k and v are packed.
        cu_seqlens_k: offsets of the packed key sequences, from 0 to M; default `cu_seqlens_q`.
        dropout_p: probability of dropping an attention weight, in [0, 1]; the others are scaled
            by 1 / (1 - p). The seed is drawn from torch's default generator, so
            `torch.manual_seed` makes dropout repeatable.
        return_lse: also return the log of the softmax's denominator. Differentiable.

    Returns:
        out (B,H,S,Dv), or packed (N,H,Dv), in the dtype of `q`; zero for queries that see no key.
        With `return_lse` the pair (out, lse): lse is (B,H,S), or packed (N,H), in float32
        (float64 for float64 input), and -inf for queries that see no key.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number does not fit; the message names the argument.

    Example:
        >>> q = torch.randn(1, 8, 128, 64); k = v = torch.randn(1, 2, 128, 64)
        >>> llama_fast.attention(q, k, v, causal=True).shape
        torch.Size([1, 8, 128, 64])
    """
    packed = cu_seqlens_q is not None
    if packed or not checks.is_plain_call(q, k, v):
        q, k, v = (checks.autocast(name, t) for name, t in (("q", q), ("k", k), ("v", v)))
        checks.check_tensors(q, k, v, packed)
    if packed:
        if bias is not None or key_padding_mask is not None:
            name = "bias" if bias is not None else "key_padding_mask"
            raise ValueError(f"{name}: expected None with packed sequences, got a tensor")
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        checks.check_offsets(q, k, cu_seqlens_q, cu_seqlens_k)
    elif cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_q: expected a tensor beside cu_seqlens_k, got None")
    scale = checks.check_scale(scale, q.shape[-1])
    softcap, dropout_p = checks.check_softcap(softcap), checks.check_dropout(dropout_p)
    top_left = False
    if bias is not None and is_causal_bias(bias):
        top_left = not causal_bias("bias", bias, q.shape[2], k.shape[2])
        bias, causal = None, causal or not top_left
    if bias is not None:
        bias = checks.check_bias(bias, q, k)
    if key_padding_mask is not None:
        checks.check_padding_mask(key_padding_mask, q, k)
    if alibi_slopes is not None:
        batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.numel() - 1
        alibi_slopes = checks.check_slopes(alibi_slopes, q, batch)
    if sinks is not None:
        checks.check_sinks(sinks, q)
    left, right = checks.check_window(window, causal)
    if top_left and (ahead := q.shape[2] - k.shape[2]) > 0:  # query i is at position i - ahead
        right = ahead if right < 0 else min(right, ahead)
    elif top_left:
        bias = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]

    backend = choose("attention", q)
    seed = None
    if dropout_p > 0:
        # A tensor rather than a number, so that a compiled graph draws a new seed at each call.
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
    options = AttentionOptions(
        bias, key_padding_mask, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, seed,
        causal, left, right, scale, softcap, dropout_p,
    )  # fmt: skip
    if backend in ("cpu", "triton") and not needs_plain_torch():
        out, lse, _ = call_attention(q, k, v, *options)
    elif backend == "torch":
        return stock.attention(q, k, v, options, return_lse=return_lse)
    else:
        with without_autocast(q.device.type):
            out, lse = reference.attention(q, k, v, options)
    return (out, lse) if return_lse else out
