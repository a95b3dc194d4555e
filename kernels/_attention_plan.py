"""The host's side of the attention kernels: a call of the operator, as the kernels take it.

Nothing here reads a tensor's values, so nothing waits for the GPU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from llama_fast.reference import AttentionOptions
from llama_fast.reference._dtypes import wide_dtype

from ._launch import accumulator

MIN_DOT_SIZE = 16  # rows, columns and depth of the smallest matrix product


class StridedTensor(NamedTuple):
    """A tensor and its strides; a `ptr` of None where there is no tensor."""

    ptr: torch.Tensor | None
    batch: int = 0
    head: int = 0
    row: int = 0
    col: int = 0


class Masks(NamedTuple):
    """Tensors that change scores or weights; a `ptr` of None, or None, where there is none."""

    bias: StridedTensor
    padding: StridedTensor
    slopes: StridedTensor
    sinks: torch.Tensor | None
    seed: torch.Tensor | None
    cu_q: torch.Tensor | None
    cu_k: torch.Tensor | None


class Scalars(NamedTuple):
    """Numbers of a call; doubles as their bits, which lose nothing (see `from_bits`)."""

    scale: int
    softcap: int
    min_kept: int  # dropout keeps the random words from this one on
    keep_scale: int  # what kept weights are multiplied by


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
    OFFSET: Any  # integer type of offsets inside a tile
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
    TMA: bool = False  # loops read their tensors through tensor descriptors
    WARP_SPECIALIZE: bool = False

    @property
    def UNIT(self) -> float:
        """Factor of scores before they are exponentiated: log2(e) where powers are of two."""
        return 1.4426950408889634 if self.BASE2 else 1.0


def double_bits(x: float) -> int:
    """The bits of a double as a signed integer."""
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def strided_heads(t: torch.Tensor | None) -> StridedTensor:
    """A (B,H,S,D) or packed (N,H,D) tensor."""
    if t is None:
        return StridedTensor(None)
    if t.dim() == 4:
        return StridedTensor(t, *t.stride())
    return StridedTensor(t, 0, t.stride(1), t.stride(0), t.stride(2))


def strided_rows(t: torch.Tensor | None) -> StridedTensor:
    """A (B,H,S) or packed (N,H) tensor."""
    if t is None:
        return StridedTensor(None)
    if t.dim() == 3:
        return StridedTensor(t, *t.stride())
    return StridedTensor(t, 0, t.stride(1), t.stride(0))


def strided_bias(t: torch.Tensor | None) -> StridedTensor:
    """A four-dimensional tensor, whose dimensions of size 1 are broadcast."""
    if t is None:
        return StridedTensor(None)
    return StridedTensor(t, *(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)))


def strided_slopes(slopes: torch.Tensor | None) -> StridedTensor:
    """ALiBi slopes, (1,H) or (B,H)."""
    if slopes is None:
        return StridedTensor(None)
    batch = 0 if slopes.shape[0] == 1 else slopes.stride(0)
    return StridedTensor(slopes, batch, head=slopes.stride(1))


def _strided_padding(mask: torch.Tensor | None) -> StridedTensor:
    """A padding mask (B,T)."""
    if mask is None:
        return StridedTensor(None)
    return StridedTensor(_as_bytes(mask), mask.stride(0), col=mask.stride(1))


def supports_descriptor(t: torch.Tensor) -> bool:
    """Whether a kernel may read `t` through a tensor descriptor.

    Not packed sequences: the rows of the next sequence would be read as this one's.
    """
    aligned = all(
        n == 1 or (s > 0 and s * t.element_size() % 16 == 0)
        for n, s in zip(t.shape[:-1], t.stride()[:-1], strict=True)
    )
    return (
        t.dim() == 4 and t.numel() > 0 and t.stride(-1) == 1 and t.data_ptr() % 16 == 0 and aligned
    )


def loop_operand(t: torch.Tensor, rows: int, plan: Plan) -> StridedTensor | TensorDescriptor:
    """A tensor that a loop reads `rows` rows at a time: a descriptor where the plan says so."""
    if not plan.TMA:
        return strided_heads(t)
    block = plan.BLOCK_D if t.shape[-1] == plan.D else plan.BLOCK_DV
    # The stride of a dimension of size 1 may be anything, but a descriptor requires alignment.
    strides = [block if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)]
    return TensorDescriptor(t, list(t.shape), [*strides[:-1], 1], [1, 1, rows, block])


def needs_int64_offsets(*tensors: torch.Tensor) -> bool:
    """Whether elements of one tile (at most 256 rows) lie too far apart for 32-bit offsets."""
    row, col = (0 if t.dim() == 3 else 2 for t in tensors), -1
    return any(
        256 * abs(t.stride(r)) + t.shape[col] * abs(t.stride(col)) >= 2**31
        for t, r in zip(tensors, row, strict=True)
    )


def dot_size(n: int) -> int:
    """The smallest power of two that holds n and that a matrix product takes."""
    return max(MIN_DOT_SIZE, 1 << (n - 1).bit_length())


def dot_precision() -> str:
    """The precision of float32 products: "tf32" where torch's setting allows it, or "ieee"."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@dataclass
class AttentionProblem:
    """One call of the operator: its sizes, and its options as the kernels take them."""

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
    scalars: Scalars
    features: dict[str, Any]  # the fields of Plan that follow from the options

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return max(1, self.heads // max(self.kv_heads, 1))

    @property
    def modifies_scores(self) -> bool:
        """Whether scores need more work than a product, a mask of positions and a power."""
        return bool(
            not self.features["PLAIN"] or self.features["PADDING"] or self.features["DROPOUT"]
        )

    @property
    def sum_dtype(self) -> torch.dtype:
        """The dtype of sums and log-sum-exps."""
        return wide_dtype(self.dtype)

    def plan(self, tiling: Tiling, int64_offsets: bool, group: int = 1) -> Plan:
        """The plan with such tiles; `group` heads share one."""
        return Plan(
            M=tiling.M,
            N=tiling.N,
            TMA=tiling.tma,
            WARP_SPECIALIZE=tiling.specialize,
            D=self.head_size,
            DV=self.value_size,
            BLOCK_D=dot_size(self.head_size),
            BLOCK_DV=dot_size(self.value_size),
            H=self.heads,
            K=self.kv_heads,
            GROUP=group,
            ACC=accumulator(self.dtype),
            OFFSET=tl.int64 if int64_offsets else tl.int32,
            **self.features,
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments that all kernels over tiles share."""
        return (
            self.masks, self.scalars, self.batch, self.queries, self.keys, self.left, self.right,
        )  # fmt: skip

    def programs(self, rows: int, block: int, heads: int) -> int:
        """Programs for tiles of `block` out of `rows` rows of every head, batch entries together.

        Where packed, `rows` are those of all sequences, and it is a bound (see `find_sequence`).
        """
        if self.packed:
            return (rows // block + self.batch) * heads if self.batch else 0
        return triton.cdiv(rows, block) * heads * self.batch


def make_problem(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> AttentionProblem:
    """The arguments of the operator as the kernels take them."""
    packed = options.cu_seqlens_q is not None
    row = 0 if packed else 2
    queries, keys = q.shape[row], k.shape[row]
    batch = options.cu_seqlens_q.numel() - 1 if options.cu_seqlens_q is not None else q.shape[0]
    # A side as wide as all there is limits nothing, and the kernels compute with 32 bits.
    left, right = (side if 0 <= side < queries + keys else -1 for side in options.window)
    return AttentionProblem(
        batch, q.shape[1], k.shape[1], queries, keys, q.shape[-1], v.shape[-1], q.dtype,
        packed, left, right, _masks(q, options), _scalars(options),
        _features(q, options, left, right),
    )  # fmt: skip


def _masks(q: torch.Tensor, options: AttentionOptions) -> Masks:
    bias, sinks, seed = options.bias, options.sinks, options.dropout_seed
    cu_q, cu_k = options.cu_seqlens_q, options.cu_seqlens_k
    return Masks(
        bias=strided_bias(None if bias is None else _as_bytes(bias)),
        padding=_strided_padding(options.key_padding_mask),
        slopes=strided_slopes(options.alibi_slopes),
        sinks=None if sinks is None else sinks.contiguous(),
        seed=seed.to(q.device) if options.dropout_p > 0 and seed is not None else None,
        cu_q=None if cu_q is None else cu_q.contiguous(),
        cu_k=None if cu_k is None else cu_k.contiguous(),
    )


def _scalars(options: AttentionOptions) -> Scalars:
    dropout_p = options.dropout_p
    return Scalars(
        scale=double_bits(options.scale),
        softcap=double_bits(options.softcap),
        min_kept=min(int(dropout_p * 2**32), 2**32 - 1),
        keep_scale=double_bits(1 / (1 - dropout_p) if dropout_p < 1 else 0.0),
    )


def _features(
    q: torch.Tensor, options: AttentionOptions, left: int, right: int
) -> dict[str, bool | str]:
    bias = options.bias
    has_float_bias = bias is not None and bias.dtype != torch.bool
    narrow = q.dtype in (torch.float16, torch.bfloat16)
    return {
        "NARROW": narrow,
        # log2(e) times the lowest finite number, by which a bias may mask, would be -inf.
        "BASE2": narrow and not has_float_bias,
        "PLAIN": options.scale > 0
        and options.softcap == 0
        and bias is None
        and options.alibi_slopes is None,
        "PRECISION": dot_precision(),
        "PACKED": options.cu_seqlens_q is not None,
        "LEFT": left >= 0,
        "RIGHT": right >= 0,
        "SOFTCAP": options.softcap > 0,
        "BIAS": "float" if has_float_bias else "" if bias is None else "bool",
        "PADDING": options.key_padding_mask is not None,
        "ALIBI": options.alibi_slopes is not None,
        "SINKS": options.sinks is not None,
        "DROPOUT": options.dropout_p > 0,
    }


def _as_bytes(t: torch.Tensor) -> torch.Tensor:
    return t.view(torch.uint8) if t.dtype == torch.bool else t
