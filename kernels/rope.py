"""Rotary position embedding in Triton: queries and keys in one launch.

    a' = a cos - b sin        b' = b cos + a sin

A program rotates some heads at some positions, whose cosines and sines it reads once.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from llama_fast.reference._dtypes import wide_dtype

from ._launch import Options, accumulator, launch, new_like_heads

MAX_HEADS = 4  # largest number of heads per program


@triton.jit
def _rotate(
    x, out, x_strides, out_strides, cos, sin, batch, head, position, limit, pairs,
    INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Rotate one head at the positions of a program that are below `limit`."""
    exists = position < limit
    source = x + batch * x_strides[0] + head * x_strides[1] + position * x_strides[2]
    target = out + batch * out_strides[0] + head * out_strides[1] + position * out_strides[2]
    if INTERLEAVED:
        # Neighbouring elements are read and written together, 16 bytes at a time.
        both = tl.arange(0, 2 * PAIRS)[None, :]
        mask = exists & (both < 2 * pairs)
        numbers = tl.load(source + both, mask, other=0.0).to(cos.dtype)
        a, b = tl.split(tl.reshape(numbers, [numbers.shape[0], PAIRS, 2]))
        rotated = tl.join(a * cos - b * sin, b * cos + a * sin)
        tl.store(target + both, tl.reshape(rotated, [numbers.shape[0], 2 * PAIRS]), mask)
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        mask = exists & (pair < pairs)
        a = tl.load(source + pair, mask, other=0.0).to(cos.dtype)
        b = tl.load(source + pairs + pair, mask, other=0.0).to(cos.dtype)
        tl.store(target + pair, a * cos - b * sin, mask)
        tl.store(target + pairs + pair, b * cos + a * sin, mask)


@triton.jit
def _rope(
    q, k, cos, sin, q_out, k_out, q_heads, k_heads, positions, pairs, q_strides, k_strides,
    q_out_strides, k_out_strides, cos_strides, sin_strides, ACC: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, POSITIONS: tl.constexpr, PAIRS: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(positions, POSITIONS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks) * POSITIONS + tl.arange(0, POSITIONS)[:, None]
    position = position.to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    mask = (position < positions) & (pair < pairs)
    offset = batch * cos_strides[0] + position * cos_strides[1] + pair
    c = tl.load(cos + offset, mask, other=0.0).to(ACC)
    offset = batch * sin_strides[0] + position * sin_strides[1] + pair
    s = tl.load(sin + offset, mask, other=0.0).to(ACC)
    if INVERSE:
        s = -s

    q_groups = tl.cdiv(q_heads, HEADS)
    group = tl.program_id(1)
    for i in tl.static_range(HEADS):
        if group < q_groups:
            head = (group * HEADS + i).to(tl.int64)
            limit = tl.where(head < q_heads, positions, 0)
            _rotate(
                q, q_out, q_strides, q_out_strides, c, s, batch, head, position, limit, pairs,
                INTERLEAVED, PAIRS,
            )  # fmt: skip
        else:
            head = ((group - q_groups) * HEADS + i).to(tl.int64)
            limit = tl.where(head < k_heads, positions, 0)
            _rotate(
                k, k_out, k_strides, k_out_strides, c, s, batch, head, position, limit, pairs,
                INTERLEAVED, PAIRS,
            )  # fmt: skip


def _options(positions: int, pairs: int, heads: int, q: torch.Tensor) -> Options:
    """The options: at most 2048 elements of a head per program of 128 threads, 16 per thread."""
    block = triton.next_power_of_2(pairs)
    rows = min(max(1, 1024 // block), triton.next_power_of_2(positions))
    return {
        "ACC": accumulator(q.dtype),
        "POSITIONS": rows,
        "PAIRS": block,
        "HEADS": min(MAX_HEADS, triton.next_power_of_2(heads)),
        "num_warps": max(1, min(4, rows * block // 256)),
    }


def _with_contiguous_rows(t: torch.Tensor) -> torch.Tensor:
    """Return `t`, or a contiguous copy if the last dimension is strided."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    inverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator llama_fast::rope: q and k, rotated."""
    q_out, k_out = new_like_heads(q), new_like_heads(k)
    B, q_heads, S, D = q.shape
    k_heads = k.shape[1]
    if B * S * D * (q_heads + k_heads) == 0:
        return q_out, k_out
    q, k = _with_contiguous_rows(q), _with_contiguous_rows(k)
    tables = []
    for table in (cos, sin):
        table = _with_contiguous_rows(table)
        tables.append((table, (table.stride(0) if table.dim() == 3 else 0, table.stride(-2))))
    (cos, cos_strides), (sin, sin_strides) = tables
    options = _options(S, D // 2, max(q_heads, k_heads), q)
    groups = sum(triton.cdiv(heads, options["HEADS"]) for heads in (q_heads, k_heads))
    arguments = (
        q, k, cos, sin, q_out, k_out, q_heads, k_heads, S, D // 2,
        *(t.stride()[:3] for t in (q, k, q_out, k_out)), cos_strides, sin_strides,
    )  # fmt: skip
    flags = {"INTERLEAVED": interleaved, "INVERSE": inverse}
    programs = (B * triton.cdiv(S, options["POSITIONS"]), groups)
    launch(_rope, programs, arguments, options | flags)
    return q_out, k_out


def examples() -> Iterator[Callable[[], object]]:
    """Yield calls that together use every configuration."""
    shapes = (
        *((d, 4096, 32, 8) for d in (128, 16, 64, 80, 256, 512)),
        *((128, s, 32, 8) for s in (1, 4)),
        *((128, 4096, h, 1) for h in (1, 2)),
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        # float16 is treated like bfloat16; float64 is for checks of derivatives.
        for D, S, H, K in shapes if dtype in (torch.bfloat16, torch.float32) else shapes[:1]:
            q, k = (
                torch.empty(2, S, heads, D, dtype=dtype, device="meta").transpose(1, 2)
                for heads in (H, K)
            )
            table = torch.empty(S, D // 2, dtype=wide_dtype(dtype), device="meta")
            for interleaved in (False, True):
                for inverse in (False, True) if (S, H, D) == (4096, 32, 128) else (False,):
                    yield partial(rope, q, k, table, table, interleaved, inverse)
