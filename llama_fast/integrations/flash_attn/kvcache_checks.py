"""Checks of the arguments of flash_attn_with_kvcache."""

from __future__ import annotations

from typing import Any

import torch

from llama_fast.integrations.flash_attn import checks
from llama_fast.ops import _checks


def tensors(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
) -> None:
    """Check shapes, dtypes and devices of queries, cache, and new keys and values."""
    names = ("q", "k_cache", "v_cache")
    layouts = ("(B,S,H,D)", "(B,L,K,D) or (P,page,K,D)", "(B,L,K,Dv) or (P,page,K,Dv)")
    checks.heads(q, k_cache, v_cache, layouts, names)
    if (k is None) != (v is None):
        present, missing = ("k", "v") if v is None else ("v", "k")
        raise ValueError(f"{missing}: expected a tensor beside {present}, got None")
    _checks.check_same("k_cache", k_cache, "q", q)
    _checks.check_same("v_cache", v_cache, "q", q)
    if k is None or v is None:
        return
    _checks.check_float("k", k)
    _checks.check_dim("k", k, 4, "(B,N,K,D)")
    for name, t, cache, layout in (
        ("k", k, k_cache, "(B,N,K,D)"),
        ("v", v, v_cache, "(B,N,K,Dv)"),
    ):
        _checks.check_float(name, t)
        _checks.check_same(name, t, "q", q)
        _checks.check_shape(name, t, (q.shape[0], k.shape[1], *cache.shape[2:]), layout)


def locations(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    k: torch.Tensor | None,
    cache_seqlens: Any,
    cache_batch_idx: torch.Tensor | None,
    cache_leftpad: torch.Tensor | None,
    block_table: torch.Tensor | None,
    window: tuple[int, int] | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, int]:
    """Check the arguments that locate the keys.

    Returns:
        A tuple of the cached lengths (B,), the page table and the left padding, all int32, and the
        largest length after the call, or an upper bound if the lengths cannot be read.
    """
    B, S = q.shape[:2]
    count, size = k_cache.shape[:2]
    added = 0 if k is None else k.shape[1]
    capacity = size
    if block_table is not None:
        if cache_batch_idx is not None:
            raise ValueError("cache_batch_idx: expected None with a block_table, got a tensor")
        _checks.check_tensor("block_table", block_table, checks.INDEX_DTYPES, "int32 or int64")
        _checks.check_dim("block_table", block_table, 2, "(B,pages)")
        shape = (B, block_table.shape[1])
        block_table = checks.indices("block_table", block_table, shape, "(B,pages)", q)
        if size == 0:
            raise ValueError("k_cache: expected pages of at least one key, got pages of none")
        capacity = size * shape[1]
    elif cache_batch_idx is not None:
        checks.indices("cache_batch_idx", cache_batch_idx, (B,), "(B,)", q)
        if size == 0:
            raise ValueError("k_cache: expected rows of at least one key, got rows of none")
    elif count < B:
        raise ValueError(f"k_cache: expected at least the batch size of q, {B}, got {count}")
    if cache_leftpad is not None:
        cache_leftpad = checks.indices("cache_leftpad", cache_leftpad, (B,), "(B,)", q)
    cache_lengths = _cache_lengths(cache_seqlens, capacity, B, k, q)

    if not checks.host_values(cache_lengths):
        return cache_lengths, block_table, cache_leftpad, capacity
    lengths = cache_lengths.tolist()
    for b, length in enumerate(lengths):
        if not 0 <= length <= capacity - added:
            beside = f" beside {added} new keys" if added else ""
            raise ValueError(
                f"cache_seqlens: expected lengths in [0, {capacity - added}]{beside}, "
                f"got {length} at position {b}"
            )
    if cache_leftpad is not None:
        for b, pad in enumerate(cache_leftpad.tolist()):
            if not 0 <= pad <= lengths[b]:
                raise ValueError(
                    f"cache_leftpad: expected numbers in [0, {lengths[b]}] (cache_seqlens), "
                    f"got {pad} at position {b}"
                )
    if cache_batch_idx is not None:
        for b, row in enumerate(cache_batch_idx.tolist()):
            if not 0 <= row < count:
                raise ValueError(
                    f"cache_batch_idx: expected rows in [0, {count}), got {row} at position {b}"
                )
    ends = [length + added for length in lengths]
    if block_table is not None:
        # Pages outside the window of all queries may be freed.
        left = -1 if window is None else window[0]
        first = [max(0, end - S - left) if left >= 0 else 0 for end in ends]
        first = [min(begin, length) for begin, length in zip(first, lengths, strict=True)]
        checks.pages(block_table, first, ends, size, count)
    return cache_lengths, block_table, cache_leftpad, max(ends, default=0)


def _cache_lengths(
    cache_seqlens: Any, capacity: int, batch: int, k: torch.Tensor | None, q: torch.Tensor
) -> torch.Tensor:
    if cache_seqlens is None:
        if k is not None:
            raise ValueError("cache_seqlens: expected lengths beside k, got None")
        cache_seqlens = capacity
    if isinstance(cache_seqlens, torch.Tensor):
        cache_lengths: torch.Tensor = checks.indices(
            "cache_seqlens", cache_seqlens, (batch,), "(B,)", q
        )
        return cache_lengths
    if isinstance(cache_seqlens, bool) or not isinstance(cache_seqlens, int | torch.SymInt):
        raise TypeError(
            f"cache_seqlens: expected an int or a tensor of int32 or int64, got {cache_seqlens!r}"
        )
    return torch.full((batch,), cache_seqlens, dtype=torch.int32, device=q.device)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
) -> None:
    """Check that the rotary tables (R,r/2) cover the cache."""
    if cos is None and sin is None:
        return
    if cos is None or sin is None:
        present, missing = ("cos", "sin") if sin is None else ("sin", "cos")
        raise ValueError(f"rotary_{missing}: expected a tensor beside rotary_{present}, got None")
    for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
        _checks.check_float(name, table)
        _checks.check_dim(name, table, 2, "(R,r/2)")
        _checks.check_device(name, table, "q", q)
    if k is None:
        raise ValueError("rotary_cos: expected None without new keys k, got a tensor")
    if sin.shape != cos.shape:
        raise ValueError(
            f"rotary_sin: expected the shape of rotary_cos, {_checks.shape(cos)}, "
            f"got {_checks.shape(sin)}"
        )
    if 2 * cos.shape[1] > q.shape[3]:
        raise ValueError(
            f"rotary_cos: expected at most half the head size, {q.shape[3] // 2}, as second "
            f"dimension, got {_checks.shape(cos)}"
        )
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    if cos.shape[0] < capacity:
        raise ValueError(
            f"rotary_cos: expected at least as many rows as the cache has, {capacity}, "
            f"got {cos.shape[0]}"
        )
