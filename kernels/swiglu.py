"""SwiGLU in Triton: silu(gate) * up, elementwise in blocks of a row.

s = 1 / (1 + e^-g)        out = g s u        dgate = dout u s (1 + g (1 - s))        dup = dout g s
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from ._launch import Options, accumulator, as_rows, launch
from ._math import divide, exp


@triton.jit
def _position(columns, BLOCK: tl.constexpr):
    """The row of this program, its columns, and which of them exist."""
    blocks = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row, column, column < columns


@triton.jit
def _forward(
    gate, up, out, columns, gate_stride, up_stride, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    row, column, mask = _position(columns, BLOCK)
    g = tl.load(gate + row * gate_stride + column, mask, other=0.0).to(ACC)
    u = tl.load(up + row * up_stride + column, mask, other=0.0).to(ACC)
    # Not g * s: for a gate of -inf the result is -inf / inf = NaN, as in torch.
    silu = divide(g, 1.0 + exp(-g))
    tl.store(out + row * columns + column, silu * u, mask)


@triton.jit
def _backward(
    grad_out, gate, up, grad_gate, grad_up, columns, grad_stride, gate_stride, up_stride,
    ACC: tl.constexpr, NEEDS_GATE: tl.constexpr, NEEDS_UP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column, mask = _position(columns, BLOCK)
    d = tl.load(grad_out + row * grad_stride + column, mask, other=0.0).to(ACC)
    g = tl.load(gate + row * gate_stride + column, mask, other=0.0).to(ACC)
    one = tl.full([BLOCK], 1.0, ACC)
    s = divide(one, 1.0 + exp(-g))
    if NEEDS_GATE:
        u = tl.load(up + row * up_stride + column, mask, other=0.0).to(ACC)
        tl.store(grad_gate + row * columns + column, d * u * (s * (1.0 + g * (1.0 - s))), mask)
    if NEEDS_UP:
        tl.store(grad_up + row * columns + column, d * (g * s), mask)


def _options(columns: int, t: torch.Tensor) -> Options:
    """The options: 16 bytes of each tensor per thread; a smaller block for short rows."""
    block = min(4096 // t.element_size(), max(64, triton.next_power_of_2(columns)))
    return {"BLOCK": block, "ACC": accumulator(t.dtype), "num_warps": max(1, min(8, block // 256))}


def _rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return each tensor as (rows, columns): a single row if all are contiguous."""
    if all(t.is_contiguous() for t in tensors):
        return [t.view(1, -1) for t in tensors]
    return [as_rows(t) for t in tensors]


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The operator llama_fast::swiglu: silu(gate) * up."""
    out = gate.new_empty(gate.shape)
    gate, up = _rows(gate, up)
    rows, columns = gate.shape
    options = _options(columns, gate)
    programs = rows * triton.cdiv(columns, options["BLOCK"])
    arguments = (gate, up, out, columns, gate.stride(0), up.stride(0))
    launch(_forward, (programs,), arguments, options)
    return out


def swiglu_backward(
    grad_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, grad_mask: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator llama_fast::swiglu_backward: gradients of gate and up, empty if not needed."""
    needs_gate, needs_up = bool(grad_mask & 1), bool(grad_mask & 2)
    grad_gate = gate.new_empty(gate.shape if needs_gate else 0)
    grad_up = gate.new_empty(gate.shape if needs_up else 0)
    grad_out, gate, up = _rows(grad_out, gate, up)
    rows, columns = gate.shape
    options = _options(columns, gate) | {"NEEDS_GATE": needs_gate, "NEEDS_UP": needs_up}
    programs = rows * triton.cdiv(columns, options["BLOCK"])
    strides = (grad_out.stride(0), gate.stride(0), up.stride(0))
    arguments = (grad_out, gate, up, grad_gate, grad_up, columns, *strides)
    launch(_backward, (programs,), arguments, options)
    return grad_gate, grad_up


def examples() -> Iterator[Callable[[], object]]:
    """Yield calls that together use every configuration."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        # float16 is treated like bfloat16; float64 is for checks of derivatives.
        some = dtype in (torch.bfloat16, torch.float32)
        for width in (16, 100, 256, 512, 1024, 2048, 11008) if some else (100, 11008):
            both = torch.empty(1024, 2 * width, dtype=dtype, device="meta")
            gate, up = both.chunk(2, dim=-1)
            yield partial(swiglu, gate, up)
            for mask in (1, 2, 3) if width == 11008 else (3,):
                yield partial(swiglu_backward, gate, gate, up, mask)
