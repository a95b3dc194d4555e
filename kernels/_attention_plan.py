"""The host side of the attention kernels: converts a call of the operator to kernel arguments.

No function here reads a tensor's values, so none waits for the GPU.
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
    """A tensor and its strides; `ptr` is None if there is no tensor."""

    ptr: torch.Tensor | None
    batch: int = 0
    head: int = 0
    row: int = 0
    col: int = 0


class Masks(NamedTuple):
    """Tensors that change scores or weights; each absent one is None or has a `ptr` of None."""

    bias: StridedTensor
    padding: StridedTensor
    slopes: StridedTensor
    sinks: torch.Tensor | None
    seed: torch.Tensor | None
    cu_q: torch.Tensor | None
    cu_k: torch.Tensor | None


class Scalars(NamedTuple):
    """Numbers of a call; doubles are passed as their bits, which is exact (see `from_bits`)."""

    scale: int
    softcap: int
    min_kept: int  # dropout keeps a weight if its random word is at least this
    keep_scale: int  # factor of weights that dropout keeps


class Tiling(NamedTuple):
    """Numbers of queries and keys of a tile, warps of a program, and stages of its loops."""

    M: int
    N: int
    warps: int = 4
    stages: int = 1
    tma: bool = False
    specialize: bool = False


@dataclass(frozen=True)
class Plan:
    """The constants for which the code of a kernel is specialised."""

    M: int  # queries of a tile
    N: int  # keys of a tile
    D: int
    DV: int
    BLOCK_D: int
    BLOCK_DV: int
    H: int
    K: int
    GROUP: int  # heads that share a tile as its rows if queries are few; else 1
    ACC: Any
    OFFSET: Any  # integer type of offsets inside a tile
    NARROW: bool  # 16-bit inputs, for which faster functions are accurate enough
    BASE2: bool
    PLAIN: bool  # scores are products times a positive scale, without any option
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
        """Factor of scores before exponentiation: log2(e) if powers of two are used, else 1."""
        return 1.4426950408889634 if self.BASE2 else 1.0


def double_bits(x: float) -> int:
    """The bits of a double as a signed integer."""
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def strided_heads(t: torch.Tensor | None) -> StridedTensor:
    """A (B,H,S,D) or packed (N,H,D) tensor with its strides."""
    if t is None:
        return StridedTensor(None)
    if t.dim() == 4:
        return StridedTensor(t, *t.stride())
    return StridedTensor(t, 0, t.stride(1), t.stride(0), t.stride(2))


def strided_rows(t: torch.Tensor | None) -> StridedTensor:
    """A (B,H,S) or packed (N,H) tensor with its strides."""
    if t is None:
        return StridedTensor(None)
    if t.dim() == 3:
        return StridedTensor(t, *t.stride())
    return StridedTensor(t, 0, t.stride(1), t.stride(0))


def strided_bias(t: torch.Tensor | None) -> StridedTensor:
    """A four-dimensional bias with its strides, 0 in broadcast dimensions (those of size 1)."""
    if t is None:
        return StridedTensor(None)
    return StridedTensor(t, *(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)))


def strided_slopes(slopes: torch.Tensor | None) -> StridedTensor:
    """ALiBi slopes (1,H) or (B,H) with their strides."""
    if slopes is None:
        return StridedTensor(None)
    batch = 0 if slopes.shape[0] == 1 else slopes.stride(0)
    return StridedTensor(slopes, batch, head=slopes.stride(1))


def _strided_padding(mask: torch.Tensor | None) -> StridedTensor:
    """A padding mask (B,T) with its strides."""
    if mask is None:
        return StridedTensor(None)
    return StridedTensor(_as_bytes(mask), mask.stride(0), col=mask.stride(1))


def supports_descriptor(t: torch.Tensor) -> bool:
    """Whether a kernel may read `t` through a tensor descriptor.

    Packed sequences cannot be: rows of the next sequence would be read as rows of this one.
    """
    aligned = all(
        n == 1 or (s > 0 and s * t.element_size() % 16 == 0)
        for n, s in zip(t.shape[:-1], t.stride()[:-1], strict=True)
    )
    return (
        t.dim() == 4 and t.numel() > 0 and t.stride(-1) == 1 and t.data_ptr() % 16 == 0 and aligned
    )


def loop_operand(t: torch.Tensor, rows: int, plan: Plan) -> StridedTensor | TensorDescriptor:
    """A tensor of which a loop reads `rows` rows at a time: a descriptor if the plan uses TMA."""
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
    """The smallest power of two that is at least n and that a matrix product supports."""
    return max(MIN_DOT_SIZE, 1 << (n - 1).bit_length())


def dot_precision() -> str:
    """The precision of float32 products: "tf32" if torch's setting allows it, else "ieee"."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@dataclass
class AttentionProblem:
    """A call of the operator: its sizes, and its options in the form that the kernels take."""

    batch: int  # batch size, or number of packed sequences
    heads: int
    kv_heads: int
    queries: int  # number of queries per sequence; if packed, of all sequences
    keys: int
    head_size: int
    value_size: int
    dtype: torch.dtype
    packed: bool
    left: int  # -1: no limit
    right: int
    masks: Masks
    scalars: Scalars
    features: dict[str, Any]  # the fields of Plan that are determined by the options

    @property
    def group(self) -> int:
        """Number of query heads per key head."""
        return max(1, self.heads // max(self.kv_heads, 1))

    @property
    def modifies_scores(self) -> bool:
        """Whether scores need more than a product, a mask by position and an exponential."""
        return bool(
            not self.features["PLAIN"] or self.features["PADDING"] or self.features["DROPOUT"]
        )

    @property
    def sum_dtype(self) -> torch.dtype:
        """The dtype of sums and log-sum-exps."""
        return wide_dtype(self.dtype)

    def plan(self, tiling: Tiling, int64_offsets: bool, group: int = 1) -> Plan:
        """The plan for a tiling; `group` heads share a tile."""
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
        """Number of programs for tiles of `block` rows, over all heads and batch entries.

        `rows` is the number of rows of a head. If packed, it is that of all sequences, and the
        result is an upper bound (see `find_sequence`).
        """
        if self.packed:
            return (rows // block + self.batch) * heads if self.batch else 0
        return triton.cdiv(rows, block) * heads * self.batch


def make_problem(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> AttentionProblem:
    """Convert the arguments of the operator to the form that the kernels take."""
    packed = options.cu_seqlens_q is not None
    row = 0 if packed else 2
    queries, keys = q.shape[row], k.shape[row]
    batch = options.cu_seqlens_q.numel() - 1 if options.cu_seqlens_q is not None else q.shape[0]
    # A side as wide as the sequence is no limit, and the kernels compute with 32 bits.
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
