"""Attention over a cache in Triton: keys and values are read where they lie, pages too.

A first kernel writes what is new into the cache. A second attends: its programs take shares of the
keys of their own sequence, whose length no host has to know, so one long sequence among short ones
costs what it costs by itself. `combine_kernel` of attention adds the shares up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from llama_fast.kernels._attention_decode_kernels import append_kernel, decode_kernel
from llama_fast.kernels._attention_forward import combine_kernel
from llama_fast.kernels._attention_plan import (
    SMALLEST_DOT,
    Masks,
    Numbers,
    Rows,
    bits,
    heads_of,
    rows_of,
)
from llama_fast.kernels._attention_tuning import power_of_two
from llama_fast.kernels._launch import accumulator, gpu, launch, new_like_heads, wide_type

__all__ = ["append_kernel", "attention_decode", "combine_kernel", "decode_kernel", "examples"]

LONGEST_SHARE = 4096  # keys of a program, at most about


@dataclass(frozen=True)
class Plan:
    """What the code of the kernels is specialised for."""

    M: int  # rows of a tile: queries times heads of a group
    N: int  # keys of a step
    D: int
    DV: int
    BLOCK_D: int
    BLOCK_DV: int
    BLOCK: int  # the larger one
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
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    window_left: int,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator llama_fast::attention_decode: out, lse."""
    B, H, S, D = q.shape
    pages, K, page, DV = v_cache.shape
    capacity = page if page_table is None else page * page_table.shape[1]
    totals = cache_seqlens.long() + (0 if k is None else S)
    good = (cache_seqlens >= 0) & (totals <= capacity)
    totals = totals * good
    if page_table is not None:
        first = totals * 0 if window_left < 0 else (totals - S - window_left).clamp(min=0)
        good = good & ~_bad_pages(page_table, first, totals, pages, page)
    out = new_like_heads(q if D == DV else q[..., :1].expand(B, H, S, DV))
    lse = q.new_empty(B, H, S, dtype=wide_type(q.dtype))
    if lse.numel() == 0:
        return out, lse

    most = capacity if window_left < 0 else min(capacity, S + window_left)
    plan, warps = _plan(q, K, DV, page_table, window_left, softcap, alibi_slopes, sinks)
    table = Rows(None) if page_table is None else Rows(page_table, *_pair(page_table.stride()))
    where = (table, totals * good)
    for new, cache in ((k, k_cache), (v, v_cache)):
        if new is not None:
            arguments = (heads_of(new), heads_of(cache), *where, S, pages, page)
            size = {"SIZE": cache.shape[3], "P": plan, "num_warps": 1}
            launch(append_kernel, (B * K * S,), arguments, size, repeatable=False)

    programs = B * K * triton.cdiv(S * plan.GROUP, plan.M)
    shares = _shares(programs, most, plan.N, gpu(q).processors)
    parts = q.new_empty(shares * B, H, S, DV, dtype=lse.dtype)
    part_lse, part_low = parts.new_empty(2, shares * B, H, S)
    masks = Masks(Rows(None), Rows(None), _slopes(alibi_slopes), sinks, None, None, None)
    arguments = (
        heads_of(q),
        heads_of(k_cache),
        heads_of(v_cache),
        heads_of(parts),
        rows_of(part_lse),
        rows_of(part_low),
        *where,
        masks.slopes,
        Numbers(bits(scale), bits(softcap), 0, 0),
        B,
        S,
        pages,
        page,
        window_left,
    )
    launch(decode_kernel, (programs, shares), arguments, {"P": plan, "num_warps": warps})
    arguments = (
        heads_of(parts),
        rows_of(part_lse),
        rows_of(part_low),
        heads_of(out),
        rows_of(lse),
        rows_of(torch.empty_like(lse)),
        masks,
        B,
        shares,
        S,
    )
    launch(combine_kernel, (B * H * S,), arguments, {"P": plan, "num_warps": 4})
    bad = ~good.view(B, 1, 1)
    return out.masked_fill_(bad.unsqueeze(3), torch.nan), lse.masked_fill_(bad, torch.nan)


def _plan(
    q: torch.Tensor,
    K: int,
    DV: int,
    page_table: torch.Tensor | None,
    window_left: int,
    softcap: float,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> tuple[Plan, int]:
    """The plan, and the warps of a program: the largest steps that leave no register spilled."""
    _, H, S, D = q.shape
    block_d, block_dv = (max(SMALLEST_DOT, power_of_two(n)) for n in (D, DV))
    block = max(block_d, block_dv)
    size = block * q.element_size()
    group = H // max(K, 1)
    rows = power_of_two(max(SMALLEST_DOT, S * group))
    narrow = q.element_size() == 2
    plan = Plan(
        M=min(rows, 32 if narrow and size <= 256 else SMALLEST_DOT),
        N=64 if size <= 128 else 32 if size <= 512 else SMALLEST_DOT,
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
        PRECISION="tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        PAGED=page_table is not None,
        LEFT=window_left >= 0,
        SOFTCAP=softcap > 0,
        ALIBI=alibi_slopes is not None,
        SINKS=sinks is not None,
    )
    return plan, 4 if size <= 256 else 8


def _shares(programs: int, keys: int, step: int, processors: int) -> int:
    """Shares that the keys of each tile are cut into: to occupy the GPU, and none too long."""
    fill = triton.cdiv(2 * processors, programs)
    return max(1, min(max(fill, triton.cdiv(keys, LONGEST_SHARE)), triton.cdiv(keys, step)))


def _slopes(slopes: torch.Tensor | None) -> Rows:
    if slopes is None:
        return Rows(None)
    return Rows(slopes, 0 if slopes.shape[0] == 1 else slopes.stride(0), slopes.stride(1))


def _pair(strides: tuple[int, ...]) -> tuple[int, int, int]:
    """Strides of a table (B,entries), as Rows counts them."""
    return strides[0], 0, strides[1]


def _bad_pages(
    table: torch.Tensor, firsts: torch.Tensor, totals: torch.Tensor, pages: int, page: int
) -> torch.Tensor:
    """Which sequences use a page that there is not, (B,)."""
    entry = torch.arange(table.shape[1], device=table.device)
    used = (entry >= (firsts // page).unsqueeze(1)) & (entry * page < totals.unsqueeze(1))
    return (used & ((table < 0) | (table >= pages))).any(1)


def examples() -> Iterator[Callable[[], object]]:
    """Calls that reach every configuration of these kernels."""
    for dtype, D in (
        (torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.bfloat16, 512),
        (torch.float32, 64), (torch.float32, 128), (torch.float32, 256), (torch.float64, 128),
    ):  # fmt: skip
        for paged in (False, True):
            for new in (False, True):
                yield lambda a=(dtype, D, paged, new): _example(*a)
        yield lambda a=(dtype, D, True, True, 16): _example(*a)


def _example(dtype: torch.dtype, D: int, paged: bool, append: bool, S: int = 1) -> None:
    """A call on tensors without memory; with many queries one that uses every option."""

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    B, H, K = 4, 32, 8
    q, new = empty(B, H, S, D), empty(B, K, S, D) if append else None
    cache = empty(100, K, 64, D) if paged else empty(B, K, 4096, D)
    table = empty(B, 64, of=torch.int32) if paged else None
    lengths = empty(B, of=torch.int32)
    added, cap = (empty(1, H), empty(H)), 30.0
    slopes, sinks, left, softcap = (None, None, -1, 0.0) if S == 1 else (*added, 1000, cap)
    attention_decode(
        q, cache, cache, new, new, lengths, table, slopes, sinks, left, D**-0.5, softcap
    )
