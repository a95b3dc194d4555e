"""Attention of new tokens over a cache of keys and values, as mathematics.

Sequence b holds ``cache_seqlens[b]`` keys. The new ones, if there are any, are written behind them;
then its queries attend, causally and aligned bottom-right, to all that it holds now. The keys of a
paged cache (Kwon et al. 2023, arXiv:2309.06180) lie wherever ``page_table`` says: key t of sequence
b is row ``t % page`` of page ``page_table[b, t // page]``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from ._dtypes import wide_dtype
from .attention import AttentionOptions, attention

_Result = TypeVar("_Result")


class AttentionDecodeOptions(NamedTuple):
    """The options of attention over a cache, in the order of the operator, whose last they are.

    ``torch.ops.llama_fast.attention_decode(q, k_cache, v_cache, k, v, cache_seqlens, *options)``
    calls the operator. No default changes anything.

    Attributes:
        page_table: int32 (B, pages), which page holds which keys of a sequence; None where the
            cache is contiguous.
        alibi_slopes: float (1,H) or (B,H).
        sinks: float (H,), one more logit a head in the softmax, without a value.
        window_left: number of keys seen before the query's own; -1 for all.
        scale: factor of q . k.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c); 0 for none.
    """

    page_table: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    window_left: int = -1
    scale: float = 1.0
    softcap: float = 0.0


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    cache_seqlens: torch.Tensor,
    options: AttentionDecodeOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse), sequence by sequence; see ``llama_fast.attention_decode``."""
    caches = (k_cache, v_cache)
    results = for_each_sequence(attention, q, caches, (k, v), cache_seqlens, options)
    if not results:
        out = q.new_empty(0, *q.shape[1:3], v_cache.shape[-1])
        return out, q.new_empty(0, *q.shape[1:3], dtype=wide_dtype(q.dtype))
    outs, lses = zip(*results, strict=True)
    return torch.cat(outs), torch.cat(lses)


def for_each_sequence(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions], _Result],
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    new: tuple[torch.Tensor | None, torch.Tensor | None],
    cache_seqlens: torch.Tensor,
    options: AttentionDecodeOptions,
) -> list[_Result]:
    """Write what is new into the caches and call `attend` for each sequence; its results."""
    B, H, S = q.shape[:3]
    table, left = options.page_table, options.window_left
    added = 0 if new[0] is None else new[0].shape[2]
    results = []
    for b, held in enumerate(cache_seqlens.tolist()):
        total = held + added
        for cache, t in zip(caches, new, strict=True):
            if t is not None:
                cache[_place(cache, table, b, held, total)] = t[b].transpose(0, 1)
        # Pages that no query sees any more may be gone.
        first = max(0, total - S - left) if left >= 0 else 0
        place = _place(caches[0], table, b, first, total)
        keys, values = (cache[place].transpose(0, 1).unsqueeze(0) for cache in caches)
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


def _place(
    cache: torch.Tensor, page_table: torch.Tensor | None, b: int, begin: int, end: int
) -> tuple[Any, ...]:
    """Index of the keys [begin, end) of sequence b: ``cache[place]`` is (end - begin, K, D)."""
    position = torch.arange(begin, end, device=cache.device)
    if page_table is None:
        return torch.full_like(position, b), slice(None), position
    size = cache.shape[2]
    return page_table[b].long()[position // size], slice(None), position % size
