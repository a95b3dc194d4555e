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

from typing import NamedTuple

import torch

from ._dtypes import compute_dtype
from ._logsumexp import logsumexp
from .philox import attention_keep_mask

NEG_INF = float("-inf")


class AttentionOptions(NamedTuple):
    """The options of attention, in the order in which the operator takes them after q, k and v.

    ``torch.ops.llama_fast.attention(q, k, v, *options)`` calls the operator;
    ``AttentionOptions(*arguments[3:])`` names them again. With the defaults no option has an
    effect: ``AttentionOptions()`` is softmax(q k') v.

    Attributes:
        bias: four dimensions that broadcast to (B,H,S,T). bool: True where a query may see a key;
            float: added to the scores. None for packed sequences.
        key_padding_mask: bool (B,T), True for keys to ignore. None for packed sequences.
        alibi_slopes: float (1,H) or (B,H); B is the number of sequences if packed.
        sinks: float (H,); one more logit per head in the softmax, without a value.
        cu_seqlens_q: int32 or int64 (sequences + 1,), offsets of packed query sequences, from 0 to
            N; None if q, k and v are not packed.
        cu_seqlens_k: offsets of the packed key sequences, from 0 to M; set if `cu_seqlens_q` is.
        dropout_seed: int64 (1,) on the CPU; set if `dropout_p` > 0.
        causal: a query sees no key after its own position; `window_right` then has no effect.
        window_left: number of keys seen before the query's own position i + T - S; -1 for all.
        window_right: number of keys seen after that position; -1 for all.
        scale: factor of q . k.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c); 0 for none.
        dropout_p: probability of dropping an attention weight, in [0, 1].
    """

    bias: torch.Tensor | None = None
    key_padding_mask: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    cu_seqlens_q: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    dropout_seed: torch.Tensor | None = None
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    scale: float = 1.0
    softcap: float = 0.0
    dropout_p: float = 0.0

    @property
    def window(self) -> tuple[int, int]:
        """Number of keys seen (before, after) the query's own position; -1 for all."""
        return self.window_left, 0 if self.causal else self.window_right


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (out, lse), computed with the whole S x T score matrix; see ``llama_fast.attention``.

    q (B,H,S,D), k (B,K,T,D), v (B,K,T,Dv) -> out (B,H,S,Dv), lse (B,H,S). Packed: q (N,H,D),
    k (M,K,D), v (M,K,Dv) -> (N,H,Dv), (N,H), computed as one N x M problem whose sequences do not
    see each other.
    """
    dtype = compute_dtype(q)
    packed = options.cu_seqlens_q is not None
    if packed:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    B, H, S, _ = q.shape
    T = k.shape[2]

    # Positions inside a sequence. row: (S, 1), column: (1, T); off and sequence follow the rows.
    row = torch.arange(S, device=q.device).unsqueeze(1)
    column = torch.arange(T, device=q.device).unsqueeze(0)
    if options.cu_seqlens_q is not None and options.cu_seqlens_k is not None:
        cu_q, cu_k = options.cu_seqlens_q.long(), options.cu_seqlens_k.long()
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
    # torch.compile of torch 2.10 traces the fields of a NamedTuple, not its properties.
    left, right = options.window_left, 0 if options.causal else options.window_right
    if left >= 0:
        visible = visible & (distance <= left)
    if right >= 0:
        visible = visible & (distance >= -right)
    visible = visible.expand(B, 1, S, T)
    if options.key_padding_mask is not None:
        visible = visible & ~options.key_padding_mask.view(B, 1, 1, T)

    k, v = (x.to(dtype).repeat_interleave(H // max(x.shape[1], 1), dim=1) for x in (k, v))
    scores = (q.to(dtype) * options.scale) @ k.transpose(-1, -2)
    if options.softcap > 0:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.bias is not None:
        if options.bias.dtype == torch.bool:
            visible = visible & options.bias
        else:
            scores = scores + options.bias.to(dtype)
    if options.alibi_slopes is not None:
        slopes = options.alibi_slopes.to(dtype).view(-1, H, 1)
        if packed:  # one slope per head and row: (1, H, S)
            slopes = slopes.expand(cu_q.numel() - 1, H, 1)[sequence_q.view(S), :, 0].T.unsqueeze(0)
        scores = scores - slopes.unsqueeze(-1) * distance.abs()
    scores = scores.masked_fill(~visible, NEG_INF)
    if options.sinks is not None:  # a last column that takes probability and has no value
        sinks = options.sinks.to(dtype).view(1, H, 1, 1).expand(B, H, S, 1)
        scores = torch.cat([scores, sinks], dim=-1)

    keep = None
    if options.dropout_p > 0:
        assert options.dropout_seed is not None
        stream = stream_batch * H + torch.arange(H, device=q.device).view(1, H, 1, 1)
        keep = attention_keep_mask(options.dropout_seed, options.dropout_p, stream, row, column)
    out, lse = weighted_values(scores, v, keep, options.dropout_p)
    out = out.to(q.dtype)
    if packed:
        out, lse = out.squeeze(0).transpose(0, 1), lse.squeeze(0).transpose(0, 1)
    return out, lse


def weighted_values(
    scores: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None, dropout_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): softmax of scores (B,H,S,T or T+1), where `keep`, times v (B,H,T,Dv)."""
    # A row that sees no key would be 0 / 0: give it any finite scores, then zero its result.
    dead = (scores == NEG_INF).all(dim=-1, keepdim=True)
    scores = scores.masked_fill(dead, 0)
    lse = logsumexp(scores).masked_fill(dead.squeeze(-1), NEG_INF)
    probabilities = torch.softmax(scores, dim=-1).masked_fill(dead, 0)[..., : v.shape[-2]]
    if keep is not None:
        survivors = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
        probabilities = probabilities.masked_fill(~keep, 0) * survivors
    return probabilities @ v, lse
