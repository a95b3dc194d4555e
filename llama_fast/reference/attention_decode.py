"""Attention of new tokens over a cache of keys and values, as mathematics.

The cache holds ``cache_seqlens[b]`` keys of sequence b. New keys, if given, are written after them;
then the queries attend, causally and aligned bottom-right, to all its keys. In a paged
cache (Kwon et al. 2023, arXiv:2309.06180) key t of sequence b is row ``t % page`` of page
``page_table[b, t // page]``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from ._dtypes import wide_dtype
from .attention import AttentionOptions, attention

_Result = TypeVar("_Result")


class AttentionDecodeOptions(NamedTuple):
    """The arguments of attention over a cache that follow q and the caches, in operator order.

    ``torch.ops.llama_fast.attention_decode(q, k_cache, v_cache, *options)`` calls the operator.
    With the defaults no option has an effect.

    Attributes:
        k: new keys (B,K,S,D), to be written into the cache after the present ones; or None.
        v: new values (B,K,S,Dv); set if `k` is.
        cache_seqlens: int32 (B,), number of cached keys of each sequence.
        page_table: int32 (B, pages), the pages of each sequence in the order of its keys; None
            if the cache is contiguous.
        alibi_slopes: float (1,H) or (B,H).
        sinks: float (H,); one more logit per head in the softmax, without a value.
        window_left: number of keys seen before the query's own; -1 for all.
        scale: factor of q . k.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c); 0 for none.
    """

    k: torch.Tensor | None
    v: torch.Tensor | None
    cache_seqlens: torch.Tensor
    page_table: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    window_left: int = -1
    scale: float = 1.0
    softcap: float = 0.0


def attention_decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, options: AttentionDecodeOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (out, lse), computed per sequence; see ``llama_fast.attention_decode``."""
    results = for_each_sequence(attention, q, k_cache, v_cache, options)
    if not results:
        out = q.new_empty(0, *q.shape[1:3], v_cache.shape[-1])
        return out, q.new_empty(0, *q.shape[1:3], dtype=wide_dtype(q.dtype))
    outs, lses = zip(*results, strict=True)
    return torch.cat(outs), torch.cat(lses)


def for_each_sequence(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions], _Result],
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    options: AttentionDecodeOptions,
) -> list[_Result]:
    """Write new keys and values into the caches; return the result of `attend` per sequence."""
    B, H, S = q.shape[:3]
    table, left = options.page_table, options.window_left
    added = 0 if options.k is None else S
    results = []
    for b, length in enumerate(options.cache_seqlens.tolist()):
        total = length + added
        for cache, new in ((k_cache, options.k), (v_cache, options.v)):
            if new is not None:
                cache[_cache_index(cache, table, b, length, total)] = new[b].transpose(0, 1)
        # Pages that no query sees may have been freed.
        first = max(0, total - S - left) if left >= 0 else 0
        index = _cache_index(k_cache, table, b, first, total)
        keys, values = (c[index].transpose(0, 1).unsqueeze(0) for c in (k_cache, v_cache))
        slopes = options.alibi_slopes
        own = AttentionOptions(
            alibi_slopes=None if slopes is None else slopes.expand(B, H)[b : b + 1],
            sinks=options.sinks,
            causal=True,
            window_left=left,
            scale=options.scale,
            softcap=options.softcap,
        )
        results.append(attend(q[b : b + 1], keys, values, own))
    return results


def _cache_index(
    cache: torch.Tensor, page_table: torch.Tensor | None, b: int, begin: int, end: int
) -> tuple[Any, ...]:
    """An index of the keys [begin, end) of sequence b: ``cache[index]`` is (end - begin, K, D)."""
    position = torch.arange(begin, end, device=cache.device)
    if page_table is None:
        return torch.full_like(position, b), slice(None), position
    size = cache.shape[2]
    return page_table[b].long()[position // size], slice(None), position % size
