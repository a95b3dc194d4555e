"""Scaled dot-product attention as mathematics.

For query i and key j of one head, with off = T - S (so that the last query sees the last key):

    s_ij = scale * q_i . k_j                     then  softcap * tanh(s_ij / softcap)
    s_ij = s_ij + bias_ij - slope * |i + off - j|                        or -inf where masked
    p_ij = exp(s_ij) / (exp(sink) + sum_j exp(s_ij))
    o_i  = sum_j dropout(p_ij) v_j           lse_i = log(exp(sink) + sum_j exp(s_ij))

Vaswani et al. 2017 (arXiv:1706.03762); grouped-query attention: Ainslie et al. 2023
(arXiv:2305.13245); ALiBi: Press et al. 2022 (arXiv:2108.12409); softcap: Gemma 2
(arXiv:2408.00118); sinks: the gpt-oss model card (arXiv:2508.10925).
"""

import math

import torch

from ._dtypes import compute_dtype
from ._logsumexp import logsumexp
from .philox import attention_keep_mask

NEG_INF = float("-inf")


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
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
    dropout_seed: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention with the whole S x T score matrix in memory; see ``llama_fast.attention``.

    q (B,H,S,D), k (B,K,T,D), v (B,K,T,Dv) -> (B,H,S,Dv). Packed: q (N,H,D), k (M,K,D),
    v (M,K,Dv) -> (N,H,Dv), computed as one N x M problem whose sequences do not see each other.
    ``dropout_seed`` is an int64 tensor with one element, needed when ``dropout_p`` > 0.
    """
    dtype = compute_dtype(q)
    packed = cu_seqlens_q is not None
    if packed:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    B, H, S, D = q.shape
    T = k.shape[2]

    # Positions inside a sequence. row: (S, 1), column: (1, T); off and sequence follow the rows.
    row = torch.arange(S, device=q.device).unsqueeze(1)
    column = torch.arange(T, device=q.device).unsqueeze(0)
    if cu_seqlens_q is not None:
        cu_q = cu_seqlens_q.long()
        cu_k = cu_q if cu_seqlens_k is None else cu_seqlens_k.long()
        sequence_q = torch.searchsorted(cu_q[1:], row, right=True)
        sequence_k = torch.searchsorted(cu_k[1:], column, right=True)
        off = (cu_k.diff() - cu_q.diff())[sequence_q]
        row, column = row - cu_q[sequence_q], column - cu_k[sequence_k]
        visible = sequence_q == sequence_k
        stream_batch = sequence_q.view(1, 1, S, 1)
    else:
        off = T - S
        visible = torch.ones(S, T, dtype=torch.bool, device=q.device)
        stream_batch = torch.arange(B, device=q.device).view(B, 1, 1, 1)

    distance = row + off - column  # how far the key lies behind the query
    left, right = window_bounds(window, causal)
    if left >= 0:
        visible = visible & (distance <= left)
    if right >= 0:
        visible = visible & (distance >= -right)
    visible = visible.expand(B, 1, S, T)
    if key_padding_mask is not None:
        visible = visible & ~key_padding_mask.view(B, 1, 1, T)

    k, v = (x.to(dtype).repeat_interleave(H // max(x.shape[1], 1), dim=1) for x in (k, v))
    scale = 1 / math.sqrt(max(D, 1)) if scale is None else scale
    scores = (q.to(dtype) * scale) @ k.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        if bias.dtype == torch.bool:
            visible = visible & bias
        else:
            scores = scores + bias.to(dtype)
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(dtype).view(-1, H, 1)
        if packed:  # a slope for every head and row: (1, H, S)
            slopes = slopes.expand(cu_q.numel() - 1, H, 1)[sequence_q.view(S), :, 0].T.unsqueeze(0)
        scores = scores - slopes.unsqueeze(-1) * distance.abs()
    scores = scores.masked_fill(~visible, NEG_INF)
    if sinks is not None:  # a last column that takes probability and has no value
        scores = torch.cat([scores, sinks.to(dtype).view(1, H, 1, 1).expand(B, H, S, 1)], dim=-1)

    keep = None
    if dropout_p > 0:
        stream = stream_batch * H + torch.arange(H, device=q.device).view(1, H, 1, 1)
        keep = attention_keep_mask(dropout_seed, dropout_p, stream, row, column)
    out, lse = weighted_values(scores, v, keep, dropout_p)
    out = out.to(q.dtype)
    if packed:
        out, lse = out.squeeze(0).transpose(0, 1), lse.squeeze(0).transpose(0, 1)
    return (out, lse) if return_lse else out


def weighted_values(
    scores: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None, dropout_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of scores (B,H,S,T or T+1), dropped where not `keep`, times v (B,H,T,Dv); lse."""
    # A row with nothing to see would be 0 / 0: give it any finite scores, then zero its result.
    dead = (scores == NEG_INF).all(dim=-1, keepdim=True)
    scores = scores.masked_fill(dead, 0)
    lse = logsumexp(scores).masked_fill(dead.squeeze(-1), NEG_INF)
    probabilities = torch.softmax(scores, dim=-1).masked_fill(dead, 0)[..., : v.shape[-2]]
    if keep is not None:
        survivors = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
        probabilities = probabilities.masked_fill(~keep, 0) * survivors
    return probabilities @ v, lse


def window_bounds(window: int | tuple[int, int] | None, causal: bool) -> tuple[int, int]:
    """(left, right): a query sees keys from ``left`` behind it to ``right`` ahead; -1 = no bound.

    An int w means the w keys up to and including the query's own position, and as many after it
    when not causal.
    """
    if window is None:
        left, right = -1, -1
    elif isinstance(window, int):
        left, right = window - 1, window - 1
    else:
        left, right = window
    return left, (0 if causal else right)
