"""The host's side of the attention kernels: what a call is about, as the kernels take it.

Nothing here reads a tensor, so nothing waits for the GPU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from llama_fast.kernels._launch import accumulator
from triton.tools.tensor_descriptor import TensorDescriptor

SMALLEST_DOT = 16  # rows, columns and depth of the smallest matrix product


class Rows(NamedTuple):
    """A tensor (B,H,S,D), (B,H,S) or a packed (N,H,D), (N,H), as kernels take it."""

    ptr: torch.Tensor | None
    batch: int = 0
    head: int = 0
    row: int = 0
    col: int = 0


class Masks(NamedTuple):
    """Tensors that change scores; a `ptr` of None where there is none."""

    bias: Rows
    padding: Rows
    slopes: Rows
    sinks: torch.Tensor | None
    seed: torch.Tensor | None
    cu_q: torch.Tensor | None
    cu_k: torch.Tensor | None


class Numbers(NamedTuple):
    """Numbers of a call; doubles as their bits, which keep all of them (see `number`)."""

    scale: int
    softcap: int
    keep: int  # dropout keeps random words from this one on
    survivors: int  # what kept weights are multiplied with


class Tiling(NamedTuple):
    """Queries and keys of a tile, warps of a program, stages of its loops."""

    M: int
    N: int
    warps: int = 4
    stages: int = 1
    tma: bool = False
    specialize: bool = False


@dataclass(frozen=True)
class Plan:
    """What the code of a kernel is specialised for."""

    M: int  # queries of a tile
    N: int  # keys of a tile
    D: int
    DV: int
    BLOCK_D: int
    BLOCK_DV: int
    H: int
    K: int
    GROUP: int  # heads that share a tile, as its rows (few queries); else 1
    ACC: Any
    OFFSET: Any  # of an element inside a tile
    NARROW: bool  # 16-bit inputs, for which cheaper functions are exact enough
    BASE2: bool
    PLAIN: bool  # scores are products times a positive scale and nothing else
    PRECISION: str
    PACKED: bool
    LEFT: bool
    RIGHT: bool
    SOFTCAP: bool
    BIAS: str  # "", "bool", "float"
    PADDING: bool
    ALIBI: bool
    SINKS: bool
    DROPOUT: bool
    TMA: bool = False  # what loops read comes through tensor descriptors
    WARP_SPECIALIZE: bool = False

    @property
    def UNIT(self) -> float:
        """What scores are multiplied with before they become powers."""
        return 1.4426950408889634 if self.BASE2 else 1.0


def bits(x: float) -> int:
    """The bits of a double as a signed integer."""
    return struct.unpack("<q", struct.pack("<d", x))[0]


def heads_of(t: torch.Tensor | None) -> Rows:
    """A (B,H,S,D) or packed (N,H,D) tensor."""
    if t is None:
        return Rows(None)
    if t.dim() == 4:
        return Rows(t, *t.stride())
    return Rows(t, 0, t.stride(1), t.stride(0), t.stride(2))


def describable(t: torch.Tensor) -> bool:
    """Whether a tensor descriptor can stand for `t`.

    Not of packed sequences: rows of the next one would be read as if they were there.
    """
    aligned = all(
        n == 1 or (s > 0 and s * t.element_size() % 16 == 0)
        for n, s in zip(t.shape[:-1], t.stride()[:-1], strict=True)
    )
    return (
        t.dim() == 4 and t.numel() > 0 and t.stride(-1) == 1 and t.data_ptr() % 16 == 0 and aligned
    )


def in_steps(t: torch.Tensor, rows: int, plan: Plan) -> Any:
    """A tensor whose rows a loop reads in steps: a descriptor where the plan says so."""
    if not plan.TMA:
        return heads_of(t)
    block = plan.BLOCK_D if t.shape[-1] == plan.D else plan.BLOCK_DV
    # The stride of a dimension of size 1 may be anything, but a descriptor wants it aligned.
    strides = [block if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)]
    return TensorDescriptor(t, list(t.shape), [*strides[:-1], 1], [1, 1, rows, block])


def rows_of(t: torch.Tensor | None) -> Rows:
    """A (B,H,S) or packed (N,H) tensor."""
    if t is None:
        return Rows(None)
    if t.dim() == 3:
        return Rows(t, *t.stride())
    return Rows(t, 0, t.stride(1), t.stride(0))


def broadcast(t: torch.Tensor) -> Rows:
    """A four-dimensional tensor whose dimensions of size 1 stand still."""
    return Rows(t, *(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)))


def wide(*tensors: torch.Tensor) -> bool:
    """Whether elements of one tile (at most 256 rows) lie too far apart for 32-bit offsets."""
    row, col = (0 if t.dim() == 3 else 2 for t in tensors), -1
    return any(
        256 * abs(t.stride(r)) + t.shape[col] * abs(t.stride(col)) >= 2**31
        for t, r in zip(tensors, row, strict=True)
    )


def power_of_two(n: int) -> int:
    """The smallest power of two from n on that a matrix product takes."""
    return max(SMALLEST_DOT, 1 << (n - 1).bit_length())


@dataclass
class Problem:
    """One call of the operator: its sizes, and its options as kernels take them."""

    batch: int  # or packed sequences
    heads: int
    kv_heads: int
    queries: int  # of a sequence; where packed, of all
    keys: int
    head_size: int
    value_size: int
    dtype: torch.dtype
    packed: bool
    left: int  # -1: no limit
    right: int
    masks: Masks
    numbers: Numbers
    features: dict[str, Any]

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return max(1, self.heads // max(self.kv_heads, 1))

    @property
    def rich(self) -> bool:
        """Whether scores take more work than a product, a mask of positions and a power."""
        return not self.features["PLAIN"] or self.features["PADDING"] or self.features["DROPOUT"]

    @property
    def accumulate(self) -> torch.dtype:
        """The dtype of sums and log-sum-exps."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def plan(self, tiling: Tiling, wide: bool, **more: Any) -> Plan:
        """The plan with such tiles."""
        return Plan(
            M=tiling.M,
            N=tiling.N,
            TMA=tiling.tma,
            WARP_SPECIALIZE=tiling.specialize,
            D=self.head_size,
            DV=self.value_size,
            BLOCK_D=power_of_two(self.head_size),
            BLOCK_DV=power_of_two(self.value_size),
            H=self.heads,
            K=self.kv_heads,
            ACC=accumulator(self.dtype),
            OFFSET=tl.int64 if wide else tl.int32,
            **{"GROUP": 1, **self.features, **more},
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What every kernel over tiles takes."""
        return (
            self.masks, self.numbers, self.batch, self.queries, self.keys, self.left, self.right,
        )  # fmt: skip

    def programs(self, rows: int, block: int, heads: int) -> int:
        """Programs for tiles of `block` out of `rows` rows of every head, batch entries together.

        Where packed, `rows` are those of all sequences, and it is a bound (see `find_sequence`).
        """
        if self.packed:
            return (rows // block + self.batch) * heads if self.batch else 0
        return -(-rows // block) * heads * self.batch


def describe(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    dropout_seed: torch.Tensor | None,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    softcap: float,
    dropout_p: float,
) -> Problem:
    """The problem that the arguments of the operator stand for."""
    packed = cu_seqlens_q is not None
    row = 0 if packed else 2
    queries, keys = q.shape[row], k.shape[row]
    batch = cu_seqlens_q.numel() - 1 if cu_seqlens_q is not None else q.shape[0]
    right = 0 if causal else window_right
    # A side as wide as all there is limits nothing; and so the kernels compute with 32 bits.
    left = window_left if 0 <= window_left < queries + keys else -1
    right = right if 0 <= right < queries + keys else -1
    drop = dropout_p > 0
    masks = Masks(
        bias=Rows(None) if bias is None else broadcast(_bytes(bias)),
        padding=Rows(None)
        if key_padding_mask is None
        else Rows(
            _bytes(key_padding_mask),
            batch=key_padding_mask.stride(0),
            col=key_padding_mask.stride(1),
        ),
        slopes=Rows(None)
        if alibi_slopes is None
        else Rows(
            alibi_slopes,
            batch=0 if alibi_slopes.shape[0] == 1 else alibi_slopes.stride(0),
            head=alibi_slopes.stride(1),
        ),
        sinks=None if sinks is None else sinks.contiguous(),
        seed=dropout_seed.to(q.device) if drop and dropout_seed is not None else None,
        cu_q=cu_seqlens_q.contiguous() if cu_seqlens_q is not None else None,
        cu_k=cu_seqlens_k.contiguous() if cu_seqlens_k is not None else None,
    )
    numbers = Numbers(
        scale=bits(scale),
        softcap=bits(softcap),
        keep=min(int(dropout_p * 2**32), 2**32 - 1),
        survivors=bits(1 / (1 - dropout_p) if dropout_p < 1 else 0.0),
    )
    has_float_bias = bias is not None and bias.dtype != torch.bool
    features = {
        "NARROW": q.dtype in (torch.float16, torch.bfloat16),
        # log2(e) times the lowest finite number, by which a bias may mask, would be -inf.
        "BASE2": q.dtype in (torch.float16, torch.bfloat16) and not has_float_bias,
        "PLAIN": scale > 0 and softcap == 0 and bias is None and alibi_slopes is None,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "PACKED": packed,
        "LEFT": left >= 0,
        "RIGHT": right >= 0,
        "SOFTCAP": softcap > 0,
        "BIAS": "float" if has_float_bias else "" if bias is None else "bool",
        "PADDING": key_padding_mask is not None,
        "ALIBI": alibi_slopes is not None,
        "SINKS": sinks is not None,
        "DROPOUT": drop,
    }
    return Problem(
        batch, q.shape[1], k.shape[1], queries, keys, q.shape[-1], v.shape[-1], q.dtype,
        packed, left, right, masks, numbers, features,
    )  # fmt: skip


def _bytes(t: torch.Tensor) -> torch.Tensor:
    return t.view(torch.uint8) if t.dtype == torch.bool else t
