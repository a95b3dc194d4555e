"""flash-attn's attention over a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from llama_fast.integrations.flash_attn import checks, kvcache_checks
from llama_fast.ops._attention_checks import check_slopes
from llama_fast.ops.attention import attention
from llama_fast.ops.attention_decode import _autocast, attention_decode
from llama_fast.ops.rope import rope


@torch.no_grad()
def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Append new keys and values to a cache in place, then attend to the whole cache.

    Before the call the cache holds ``cache_seqlens[b]`` keys of sequence b. T is the number of its
    keys after the call, without left padding. As in flash-attn, there is no gradient.

    Args:
        q: queries (B,S,H,D); float64, float32, bfloat16 or float16. Any strides.
        k_cache: keys (B or more,L,K,D) with H a multiple of K, or with `block_table` pages
            (P,page,K,D); dtype of `q`. Any strides.
        v_cache: values (B or more,L,K,Dv), or pages (P,page,K,Dv); dtype of `q`.
        k: new keys (B,N,K,D), where N may differ from S; written to the cache at `cache_seqlens`.
        v: new values (B,N,K,Dv).
        rotary_cos: cosines (R,r/2) that rotate the first r columns of each head, any float dtype; r
            is even and at most D, R at least L (for a paged cache, pages * page). `k` uses the rows
            from `cache_seqlens` on. So does `q` if `causal` is set or there is a window; otherwise
            all queries use row `cache_seqlens`. Requires `k`.
        rotary_sin: sines of the same angles, in the shape of `rotary_cos`.
        cache_seqlens: int, or int32 or int64 (B,), number of cached keys before the call; default:
            the whole cache is in use. It is not updated: the caller adds N. Lengths beyond the
                cache are an error on the CPU; on a GPU they
            are not checked.
        cache_batch_idx: int32 or int64 (B,): the cache row of each sequence; default the
            first B in order. Not with `block_table`.
        cache_leftpad: int32 or int64 (B,): the position in its row at which each sequence begins;
            default 0.
        block_table: int32 or int64 (B,pages): key t of sequence b is row ``t % page`` of page
            ``block_table[b, t // page]``. Pages of any size.
        softmax_scale: multiplies q . k; default 1 / sqrt(D).
        causal: whether query i sees only the keys j <= i + T - S.
        window_size: (left, right) around i + T - S, -1 for no bound. `causal` makes right 0.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c); 0.0 for none.
        rotary_interleaved: True pairs the columns 2d and 2d + 1, False d and d + r/2.
        alibi_slopes: (H,) or (B,H) float; adds ``-slope * |i + T - S - j|``.
        num_splits: has no effect; the kernels choose the number of splits.
        return_softmax_lse: also return the log of the softmax's denominator.

    Returns:
        out (B,S,H,Dv), zero for queries that see no key. With `return_softmax_lse` the pair (out,
        softmax_lse): softmax_lse is (B,H,S) in float32 (float64 for float64 input), -inf for
        queries that see no key. Under torch.autocast `q`, `k` and `v` are converted to the dtype of
        the cache.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number does not fit; the message names the argument.
    """
    q, k, v = _autocast(q, k_cache), _autocast(k, k_cache), _autocast(v, k_cache)
    kvcache_checks.tensors(q, k_cache, v_cache, k, v)
    options = checks.options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    B, S, H = q.shape[:3]
    if alibi_slopes is not None:  # raise every error before the cache is written
        check_slopes(alibi_slopes, q.transpose(1, 2), B)
    cache_lengths, table, pad, longest = kvcache_checks.locations(
        q, k_cache, k, cache_seqlens, cache_batch_idx, cache_leftpad, block_table, options["window"]
    )
    kvcache_checks.rotary(q, k, rotary_cos, rotary_sin, k_cache, block_table)
    if cache_batch_idx is not None:  # each cache row is one page
        table = cache_batch_idx.to(torch.int32).unsqueeze(1)
    elif table is None:
        k_cache, v_cache = k_cache[:B], v_cache[:B]
    options["return_lse"] = bool(return_softmax_lse)

    if k is not None and rotary_cos is not None and rotary_sin is not None:
        local = options["causal"] or options["window"] is not None
        q, k = _apply_rotary(q, k, rotary_cos, rotary_sin, cache_lengths, local, rotary_interleaved)
    # A single query is aligned to the last key, so causal masks nothing.
    causal = options["causal"] or S == 1
    if pad is None and causal:
        if k is not None and k.shape[1] != S:
            cache_lengths = _append(k_cache, v_cache, table, cache_lengths, k, v)
            k = v = None
        return _decode(q, k_cache, v_cache, k, v, cache_lengths, table, options)
    if k is not None:
        cache_lengths = _append(k_cache, v_cache, table, cache_lengths, k, v)
    if pad is None and H and options["window"] is None and alibi_slopes is None:
        # All queries see the same keys, so they can be folded into the heads of a group.
        K = k_cache.shape[2]
        folded = q.unflatten(2, (K, H // K)).transpose(1, 2).reshape(B, 1, S * H, q.shape[3])
        result = _decode(folded, k_cache, v_cache, None, None, cache_lengths, table, options)
        out, lse = result if return_softmax_lse else (result, None)
        out = out.reshape(B, K, S, H // K, v_cache.shape[3]).transpose(1, 2).flatten(2, 3)
        if lse is None:
            return out
        return out, lse.reshape(B, K, S, H // K).transpose(2, 3).flatten(1, 2)
    return _attend(q, k_cache, v_cache, cache_lengths, table, pad, longest, options)


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    cache_lengths: torch.Tensor,
    table: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """Causal attention over the cache, which is read in place; (B,S,H,D) in and out."""
    result = attention_decode(
        q.transpose(1, 2),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        k=None if k is None else k.transpose(1, 2),
        v=None if v is None else v.transpose(1, 2),
        cache_seqlens=cache_lengths,
        page_table=table,
        **{name: value for name, value in options.items() if name != "causal"},
    )
    if not options["return_lse"]:
        return result.transpose(1, 2)
    out, lse = result
    return out.transpose(1, 2), lse


def _attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cache_lengths: torch.Tensor,
    table: torch.Tensor | None,
    pad: torch.Tensor | None,
    longest: int,
    options: dict[str, Any],
) -> Any:
    """Attention with any mask, as packed sequences; unused parts of the cache have no queries.

    A contiguous cache is read in place; the pages in use of a paged cache are copied.
    """
    B, S = q.shape[:2]
    if table is not None:
        size = k_cache.shape[1]
        table = table[:, : max(1, -(-longest // size))].long().clamp(0, k_cache.shape[0] - 1)
        size = min(size, longest)  # for a single page only the part in use
        k_cache, v_cache = (c[:, :size][table].flatten(1, 2) for c in (k_cache, v_cache))
    rows = k_cache.shape[1]
    end = cache_lengths.long().clamp(0, rows)
    begin = torch.zeros_like(end) if pad is None else pad.long().clamp_min(0).minimum(end)
    sequence = torch.arange(B, device=q.device).unsqueeze(1)
    # Three packed sequences per cache row: left padding, the keys in use, and the rest of the row.
    bounds = torch.stack([begin, end, torch.full_like(end, rows)], 1) + sequence * rows
    queries = (sequence + torch.arange(3, device=q.device).clamp_max(1)) * S
    offsets = [F.pad(t.flatten(), (1, 0)) for t in (queries, bounds)]
    slopes = options["alibi_slopes"]
    if slopes is not None and slopes.dim() == 2:
        slopes = slopes.repeat_interleave(3, 0)
    result = attention(
        q.flatten(0, 1),
        k_cache.flatten(0, 1),
        v_cache.flatten(0, 1),
        cu_seqlens_q=offsets[0],
        cu_seqlens_k=offsets[1],
        **(options | {"alibi_slopes": slopes}),
    )
    if not options["return_lse"]:
        return result.unflatten(0, (B, S))
    out, lse = result
    return out.unflatten(0, (B, S)), lse.unflatten(0, (B, S)).transpose(1, 2)


def _append(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor | None,
    cache_lengths: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
) -> torch.Tensor:
    """Write new keys and values after the cached ones; return the new lengths."""
    added, size = k.shape[1], k_cache.shape[1]
    position = cache_lengths.long().unsqueeze(1) + torch.arange(added, device=k.device)
    if table is None:
        page = torch.arange(k.shape[0], device=k.device).unsqueeze(1)
    else:
        page = table.long().gather(1, position // size)
        position = position % size
    k_cache[page, position] = k
    v_cache[page, position] = v
    return cache_lengths + added


def _apply_rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache_lengths: torch.Tensor,
    local: bool,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of queries and new keys (B,S,heads,D) from position `cache_lengths` on.

    If `local` is false, all queries have position `cache_lengths`.
    """
    size = 2 * cos.shape[1]

    def tables(count: int, step: int) -> list[torch.Tensor]:
        position = cache_lengths.long().unsqueeze(1) + step * torch.arange(
            count, device=cache_lengths.device
        )
        position = position.clamp(0, cos.shape[0] - 1)  # lengths on a GPU are not checked
        return [cos[position], sin[position]]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x[..., :size].transpose(1, 2)

    def whole(rotated: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rotated = rotated.transpose(1, 2)
        return rotated if size == x.shape[3] else torch.cat([rotated, x[..., size:]], -1)

    queries, keys = heads(q), heads(k)
    at_queries, at_keys = tables(q.shape[1], int(local)), tables(k.shape[1], 1)
    if q.shape[1] == k.shape[1] and (local or q.shape[1] == 1):
        queries, keys = rope(queries, keys, *at_keys, interleaved=interleaved)
    else:
        queries, _ = rope(queries, queries[:, :0], *at_queries, interleaved=interleaved)
        _, keys = rope(keys[:, :0], keys, *at_keys, interleaved=interleaved)
    return whole(queries, q), whole(keys, k)
