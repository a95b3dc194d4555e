"""Attention over a cache, contiguous or paged, in Triton: keys and values are read in place.

The first kernel writes the new keys and values into the cache. The second computes attention for
splits of the keys of each sequence. It reads the lengths itself, as the host does not know them, so
a long sequence does not slow down short ones in the batch. `combine_splits` of attention merges the
splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from llama_fast.reference import AttentionDecodeOptions
from llama_fast.reference._dtypes import wide_dtype

from ._attention_decode_kernels import append_kernel, decode_kernel
from ._attention_forward import combine_splits
from ._attention_plan import (
    MIN_DOT_SIZE,
    Masks,
    Scalars,
    StridedTensor,
    dot_precision,
    dot_size,
    double_bits,
    strided_heads,
    strided_rows,
    strided_slopes,
)
from ._launch import accumulator, gpu, launch, new_like_heads

MAX_SPLIT_KEYS = 4096  # approximate largest number of keys in a split


@dataclass(frozen=True)
class DecodePlan:
    """The constants for which the code of the kernels is specialised."""

    M: int  # rows of a tile: queries times heads of a group
    N: int  # keys of a step
    D: int
    DV: int
    BLOCK_D: int
    BLOCK_DV: int
    BLOCK: int  # the larger of the two
    H: int
    K: int
    GROUP: int
    ACC: Any
    OFFSET: Any
    BASE2: bool
    NARROW: bool
    PRECISION: str
    PAGED: bool
    LEFT: bool
    SOFTCAP: bool
    ALIBI: bool
    SINKS: bool


def attention_decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *args: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator llama_fast::attention_decode: out, lse."""
    options = AttentionDecodeOptions(*args)
    k, v, cache_seqlens, page_table, *_ = options
    window_left = options.window_left
    B, H, S, D = q.shape
    pages, K, page, DV = v_cache.shape
    capacity = page if page_table is None else page * page_table.shape[1]
    totals = cache_seqlens.long() + (0 if k is None else S)
    valid = (cache_seqlens >= 0) & (totals <= capacity)
    totals = totals * valid
    if page_table is not None:
        first = totals * 0 if window_left < 0 else (totals - S - window_left).clamp(min=0)
        valid = valid & ~_uses_bad_page(page_table, first, totals, pages, page)
    out = new_like_heads(q if D == DV else q[..., :1].expand(B, H, S, DV))
    lse = q.new_empty(B, H, S, dtype=wide_dtype(q.dtype))
    if lse.numel() == 0:
        return out, lse

    max_keys = capacity if window_left < 0 else min(capacity, S + window_left)
    plan, warps = _plan(q, K, DV, options)
    cache = (_strided_table(page_table), totals * valid)
    for new, stored in ((k, k_cache), (v, v_cache)):
        if new is not None:
            arguments = (strided_heads(new), strided_heads(stored), *cache, S, pages, page)
            size = {"SIZE": stored.shape[3], "P": plan, "num_warps": 1}
            launch(append_kernel, (B * K * S,), arguments, size, repeatable=False)

    programs = B * K * triton.cdiv(S * plan.GROUP, plan.M)
    splits = _splits(programs, max_keys, plan.N, gpu(q).processors)
    parts = q.new_empty(splits * B, H, S, DV, dtype=lse.dtype)
    part_lse, part_low = parts.new_empty(2, splits * B, H, S)
    masks = Masks(
        StridedTensor(None), StridedTensor(None), strided_slopes(options.alibi_slopes),
        options.sinks, None, None, None,
    )  # fmt: skip
    scalars = Scalars(double_bits(options.scale), double_bits(options.softcap), 0, 0)
    arguments = (
        *map(strided_heads, (q, k_cache, v_cache, parts)),
        *map(strided_rows, (part_lse, part_low)),
        *cache,
        masks.slopes,
        scalars,
        B,
        S,
        pages,
        page,
        window_left,
    )
    launch(decode_kernel, (programs, splits), arguments, {"P": plan, "num_warps": warps})
    results = (out, lse, torch.empty_like(lse))
    combine_splits((parts, part_lse, part_low), results, masks, splits, plan)
    invalid = ~valid.view(B, 1, 1)
    return out.masked_fill_(invalid.unsqueeze(3), torch.nan), lse.masked_fill_(invalid, torch.nan)


def _plan(
    q: torch.Tensor, K: int, DV: int, options: AttentionDecodeOptions
) -> tuple[DecodePlan, int]:
    """The plan and the number of warps, for the largest steps that spill no register."""
    _, H, S, D = q.shape
    block_d, block_dv = dot_size(D), dot_size(DV)
    block = max(block_d, block_dv)
    size = block * q.element_size()
    group = H // max(K, 1)
    narrow = q.element_size() == 2
    plan = DecodePlan(
        M=min(dot_size(S * group), 32 if narrow and size <= 256 else MIN_DOT_SIZE),
        N=64 if size <= 128 else 32 if size <= 512 else MIN_DOT_SIZE,
        D=D,
        DV=DV,
        BLOCK_D=block_d,
        BLOCK_DV=block_dv,
        BLOCK=block,
        H=H,
        K=K,
        GROUP=group,
        ACC=accumulator(q.dtype),
        OFFSET=tl.int64,
        BASE2=False,
        NARROW=narrow,
        PRECISION=dot_precision(),
        PAGED=options.page_table is not None,
        LEFT=options.window_left >= 0,
        SOFTCAP=options.softcap > 0,
        ALIBI=options.alibi_slopes is not None,
        SINKS=options.sinks is not None,
    )
    return plan, 4 if size <= 256 else 8


def _splits(programs: int, keys: int, step: int, processors: int) -> int:
    """The number of splits of each tile's keys: enough to occupy the GPU, and none too long."""
    occupying = triton.cdiv(2 * processors, programs)
    return max(1, min(max(occupying, triton.cdiv(keys, MAX_SPLIT_KEYS)), triton.cdiv(keys, step)))


def _strided_table(table: torch.Tensor | None) -> StridedTensor:
    """A page table (B,pages); `row` is the stride of its entries."""
    if table is None:
        return StridedTensor(None)
    return StridedTensor(table, table.stride(0), row=table.stride(1))


def _uses_bad_page(
    table: torch.Tensor, firsts: torch.Tensor, totals: torch.Tensor, pages: int, page: int
) -> torch.Tensor:
    """(B,) bool, whether each sequence uses a page that does not exist."""
    entry = torch.arange(table.shape[1], device=table.device)
    used = (entry >= (firsts // page).unsqueeze(1)) & (entry * page < totals.unsqueeze(1))
    return (used & ((table < 0) | (table >= pages))).any(1)


def examples() -> Iterator[Callable[[], object]]:
    """Yield calls that together use every configuration."""
    for dtype, D in (
        (torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.bfloat16, 512),
        (torch.float32, 64), (torch.float32, 128), (torch.float32, 256), (torch.float64, 128),
    ):  # fmt: skip
        for paged in (False, True):
            for append in (False, True):
                yield partial(_example, dtype, D, paged, append)
        yield partial(_example, dtype, D, True, True, 16)


def _example(dtype: torch.dtype, D: int, paged: bool, append: bool, S: int = 1) -> None:
    """Call the operator on meta tensors; with many queries, with every option."""

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    B, H, K = 4, 32, 8
    q, new = empty(B, H, S, D), empty(B, K, S, D) if append else None
    cache = empty(100, K, 64, D) if paged else empty(B, K, 4096, D)
    table = empty(B, 64, of=torch.int32) if paged else None
    lengths = empty(B, of=torch.int32)
    options = AttentionDecodeOptions(new, new, lengths, table, scale=D**-0.5)
    if S > 1:
        options = options._replace(
            alibi_slopes=empty(1, H), sinks=empty(H), window_left=1000, softcap=30.0
        )
    attention_decode(q, cache, cache, *options)
