"""Attention of new tokens over a cache of keys and values, as mathematics.

Sequence b holds ``cache_seqlens[b]`` keys. The new ones, if there are any, are written behind them;
then its queries attend, causally and aligned bottom-right, to all that it holds now. The keys of a
paged cache (Kwon et al. 2023, arXiv:2309.06180) lie wherever ``page_table`` says: key t of sequence
b is row ``t % page`` of page ``page_table[b, t // page]``.
"""

from collections.abc import Callable
from typing import Any

import torch

from .attention import attention, window_bounds


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    alibi_slopes: torch.Tensor | None = None,
    return_lse: bool = False,
    attend: Callable[..., Any] = attention,
    **options: Any,
) -> Any:
    """Sequence by sequence; see ``llama_fast.attention_decode``.

    ``attend`` is the attention function that serves each of them; ``options`` are its own.
    """
    B, H, S = q.shape[:3]
    added = 0 if k is None else k.shape[2]
    left = window_bounds(window, True)[0]
    results = []
    for b, held in enumerate(cache_seqlens.tolist()):
        total = held + added
        if k is not None and v is not None:
            place = _place(k_cache, page_table, b, held, total)
            k_cache[place] = k[b].transpose(0, 1)
            v_cache[place] = v[b].transpose(0, 1)
        # Pages that no query sees any more may be gone.
        first = max(0, total - S - left) if left >= 0 else 0
        place = _place(k_cache, page_table, b, first, total)
        keys, values = (cache[place].transpose(0, 1).unsqueeze(0) for cache in (k_cache, v_cache))
        if alibi_slopes is not None:
            options["alibi_slopes"] = alibi_slopes.expand(B, H)[b]
        options |= {"causal": True, "window": window}
        if return_lse:
            options["return_lse"] = True
        results.append(attend(q[b : b + 1], keys, values, **options))
    if not results:
        out = q.new_empty(0, H, S, v_cache.shape[-1])
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return (out, q.new_empty(0, H, S, dtype=dtype)) if return_lse else out
    if return_lse:
        outs, lses = zip(*results, strict=True)
        return torch.cat(outs), torch.cat(lses)
    return torch.cat(results)


def _place(
    cache: torch.Tensor, page_table: torch.Tensor | None, b: int, begin: int, end: int
) -> tuple[Any, ...]:
    """Index of the keys [begin, end) of sequence b: ``cache[place]`` is (end - begin, K, D)."""
    position = torch.arange(begin, end, device=cache.device)
    if page_table is None:
        return torch.full_like(position, b), slice(None), position
    size = cache.shape[2]
    return page_table[b].long()[position // size], slice(None), position % size
