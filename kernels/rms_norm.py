"""RMSNorm in Triton, with the residual addition before it.

    x = input + residual     r = 1 / sqrt(mean(x^2) + eps)     y = x r (offset + w)
    dx = r (g - x r^2 mean(g x)) + grad_x,  g = dy (offset + w)     dw = sum over rows of dy x r

A program keeps whole rows in registers, so memory is read once; rows that are too long are read
twice. For dw every program sums its rows in order, and a second kernel sums over the programs.
There are no atomics, so the result is the same in every run.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from llama_fast.reference._dtypes import wide_dtype

from ._launch import (
    Options,
    accumulator,
    as_rows,
    gpu,
    has_heads_inside,
    launch,
    new_like_heads,
    warps,
)
from ._math import divide, reciprocal_root

# The longest row that stays in registers, in bytes of float32; in the backward pass together with
# the sums for the weight. Longer rows are read in blocks of LONG_ROW_BLOCK elements.
MAX_ROW_BYTES, MAX_BACKWARD_ROW_BYTES, LONG_ROW_BLOCK = 65536, 32768, 4096


@triton.jit
def _load_x(
    input, residual, x, row, column, rows, features, input_stride, residual_stride,
    ACC: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Compute some columns of x; with ADD also store them."""
    mask = (row < rows) & (column < features)
    value = tl.load(input + row * input_stride + column, mask, other=0.0)
    if ADD:
        added = tl.load(residual + row * residual_stride + column, mask, other=0.0)
        value = (value.to(ACC) + added.to(ACC)).to(x.dtype.element_ty)
        tl.store(x + row * features + column, value, mask)
    return value.to(ACC)


@triton.jit
def _store_y(
    y, weight, value, r, row, column, rows, features, weight_stride, OFFSET: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Store some columns of y."""
    w = tl.load(weight + column * weight_stride, column < features, other=0.0).to(ACC)
    mask = (row < rows) & (column < features)
    tl.store(y + row * features + column, value * r * (OFFSET + w), mask)


@triton.jit
def _forward(
    input, residual, weight, y, x, rstd, rows, features, input_stride, residual_stride,
    weight_stride, EPS: tl.constexpr, OFFSET: tl.constexpr, ACC: tl.constexpr, ADD: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    # A tensor rather than a number, so that float64 stays float64 in the interpreter.
    count = tl.full([ROWS, 1], 1, ACC) * features
    if WHOLE:
        value = _load_x(
            input, residual, x, row, columns, rows, features, input_stride, residual_stride,
            ACC, ADD,
        )  # fmt: skip
        squares = tl.sum(value * value, axis=1)[:, None]
        r = reciprocal_root(divide(squares, count) + EPS)
        _store_y(y, weight, value, r, row, columns, rows, features, weight_stride, OFFSET, ACC)
    else:
        partial = tl.zeros([ROWS, BLOCK], ACC)
        for start in range(0, features, BLOCK):
            value = _load_x(
                input, residual, x, row, start + columns, rows, features, input_stride,
                residual_stride, ACC, ADD,
            )  # fmt: skip
            partial += value * value
        squares = tl.sum(partial, axis=1)[:, None]
        r = reciprocal_root(divide(squares, count) + EPS)
        for start in range(0, features, BLOCK):
            value = _load_x(
                input, residual, x, row, start + columns, rows, features, input_stride,
                residual_stride, ACC, ADD,
            )  # fmt: skip
            column = start + columns
            _store_y(y, weight, value, r, row, column, rows, features, weight_stride, OFFSET, ACC)
    tl.store(rstd + row, r, row < rows)


@triton.jit
def _backward(
    grad_y, grad_x, x, weight, rstd, dx, partial, rows, features, grad_y_stride, grad_x_stride,
    x_stride, weight_stride, OFFSET: tl.constexpr, ACC: tl.constexpr, ADD: tl.constexpr,
    NEEDS_X: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)[None, :]
    weight_sum = tl.zeros([ROWS, BLOCK], ACC)
    count = tl.full([ROWS, 1], 1, ACC) * features
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (row < rows) & (column < features)
        r = tl.load(rstd + row, row < rows, other=0.0).to(ACC)
        d = tl.load(grad_y + row * grad_y_stride + column, mask, other=0.0).to(ACC)
        normed = tl.load(x + row * x_stride + column, mask, other=0.0).to(ACC) * r
        if NEEDS_WEIGHT:
            weight_sum += d * normed
        if NEEDS_X:
            # Loaded again for every row, from the cache, because registers are scarce.
            w = tl.load(weight + column * weight_stride, column < features, other=0.0).to(ACC)
            g = d * (OFFSET + w)
            mean = divide(tl.sum(g * normed, axis=1)[:, None], count)
            gradient = r * (g - normed * mean)
            if ADD:
                more = tl.load(grad_x + row * grad_x_stride + column, mask, other=0.0)
                gradient += more.to(ACC)
            tl.store(dx + row * features + column, gradient, mask)
    if NEEDS_WEIGHT:
        pointer = partial + tl.program_id(0).to(tl.int64) * features + column
        tl.store(pointer, tl.sum(weight_sum, axis=0)[None, :], column < features)


@triton.jit
def _backward_long(
    grad_y, grad_x, x, weight, rstd, dx, features, grad_y_stride, grad_x_stride, x_stride,
    weight_stride, OFFSET: tl.constexpr, ACC: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dx of a row that does not fit in registers."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    r = tl.load(rstd + row).to(ACC)
    products = tl.zeros([BLOCK], ACC)
    for start in range(0, features, BLOCK):
        column = start + columns
        mask = column < features
        w = OFFSET + tl.load(weight + column * weight_stride, mask, other=0.0).to(ACC)
        d = tl.load(grad_y + row * grad_y_stride + column, mask, other=0.0).to(ACC)
        products += d * w * (tl.load(x + row * x_stride + column, mask, other=0.0).to(ACC) * r)
    mean = divide(tl.sum(products, axis=0), tl.full([], 1, ACC) * features)
    for start in range(0, features, BLOCK):
        column = start + columns
        mask = column < features
        w = OFFSET + tl.load(weight + column * weight_stride, mask, other=0.0).to(ACC)
        d = tl.load(grad_y + row * grad_y_stride + column, mask, other=0.0).to(ACC)
        normed = tl.load(x + row * x_stride + column, mask, other=0.0).to(ACC) * r
        gradient = r * (d * w - normed * mean)
        if ADD:
            gradient += tl.load(grad_x + row * grad_x_stride + column, mask, other=0.0).to(ACC)
        tl.store(dx + row * features + column, gradient, mask)


@triton.jit
def _weight_sums(
    grad_y, x, rstd, partial, rows, features, grad_y_stride, x_stride, ACC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dw of some rows and columns, for rows that do not fit in registers."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    weight_sum = tl.zeros([ROWS, BLOCK], ACC)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (row < rows) & (column < features)
        r = tl.load(rstd + row, row < rows, other=0.0).to(ACC)
        d = tl.load(grad_y + row * grad_y_stride + column, mask, other=0.0).to(ACC)
        weight_sum += d * (tl.load(x + row * x_stride + column, mask, other=0.0).to(ACC) * r)
    pointer = partial + tl.program_id(0).to(tl.int64) * features + column
    tl.store(pointer, tl.sum(weight_sum, axis=0)[None, :], column < features)


@triton.jit
def _add_partials(
    partial, dweight, parts, features, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], ACC)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        mask = (part < parts) & (column < features)
        total += tl.load(partial + part.to(tl.int64) * features + column, mask, other=0.0)
    tl.store(dweight + column, tl.sum(total, axis=0)[None, :], column < features)


def _options(features: int, dtype: torch.dtype, elements: int, max_row_bytes: int) -> Options:
    """The options: whole rows per program, several short ones, up to `max_row_bytes`."""
    whole = features * wide_dtype(dtype).itemsize <= max_row_bytes
    block = max(128, triton.next_power_of_2(features)) if whole else LONG_ROW_BLOCK
    rows = max(1, elements // block)
    return {
        "ACC": accumulator(dtype),
        "ROWS": rows,
        "BLOCK": block,
        "num_warps": warps(rows * block),
    }


def rms_norm(
    input: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    eps: float,
    offset: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator llama_fast::rms_norm: y, x (empty without a residual), rstd."""
    if residual is None:
        x_type, x = input.dtype, input.new_empty(0)
    else:
        x_type = torch.promote_types(input.dtype, residual.dtype)
        x = new_like_heads(input, x_type)
    y = new_like_heads(input)
    heads = has_heads_inside(input)
    inner = input.transpose(1, 2) if heads else input
    rstd = inner.new_empty(inner.shape[:-1], dtype=wide_dtype(x_type))
    if input.numel() == 0:
        return y, x, rstd.fill_(torch.nan)  # an empty row has no mean

    flat = as_rows(inner)
    rows, features = flat.shape
    added = flat
    if residual is not None:
        added = as_rows(residual.transpose(1, 2) if heads else residual)
    options = _options(features, x_type, 2048, MAX_ROW_BYTES) | {
        "EPS": eps,
        "OFFSET": offset,
        "ADD": residual is not None,
    }
    options["WHOLE"] = options["BLOCK"] >= features
    strides = (flat.stride(0), added.stride(0), weight.stride(0))
    arguments = (flat, added, weight, y, x, rstd, rows, features, *strides)
    launch(_forward, (triton.cdiv(rows, options["ROWS"]),), arguments, options)
    return y, x, rstd.transpose(1, 2).contiguous() if heads else rstd


def rms_norm_backward(
    grad_y: torch.Tensor,
    grad_x: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    eps: float,
    offset: float,
    grad_mask: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator llama_fast::rms_norm_backward: dx and dweight, empty if not in `grad_mask`."""
    needs_x, needs_weight = bool(grad_mask & 1), bool(grad_mask & 2)
    dx = new_like_heads(x) if needs_x else x.new_empty(0)
    dweight = weight.new_empty(weight.shape if needs_weight else 0)
    if x.numel() == 0:
        return dx, dweight.zero_()

    heads = has_heads_inside(x)
    tensors = (grad_y, x if grad_x is None else grad_x, x)
    dy, dx_added, flat = (as_rows(t.transpose(1, 2) if heads else t) for t in tensors)
    rstd = (rstd.transpose(1, 2) if heads else rstd).contiguous()
    rows, features = flat.shape
    acc, add = accumulator(x.dtype), grad_x is not None
    strides = (dy.stride(0), dx_added.stride(0), flat.stride(0), weight.stride(0))
    flags = {"OFFSET": offset, "ADD": add}
    wide = x.dtype == torch.float64
    options = _options(features, x.dtype, 512 if wide else 1024, MAX_BACKWARD_ROW_BYTES)
    if not wide:
        options["num_warps"] = warps(options["ROWS"] * options["BLOCK"] // 2)  # more registers each
    whole = options["BLOCK"] >= features
    if not whole:
        options |= {"ROWS": 4, "BLOCK": 1024}
    parts = min(triton.cdiv(rows, options["ROWS"]), (4 if whole else 1) * gpu(x).processors)
    partial_sums = x.new_empty((parts, features) if needs_weight else 0, dtype=wide_dtype(x.dtype))
    inputs = (dy, dx_added, flat, weight, rstd, dx)
    if whole:
        flags |= {"NEEDS_X": needs_x, "NEEDS_WEIGHT": needs_weight}
        launch(
            _backward, (parts,), (*inputs, partial_sums, rows, features, *strides), options | flags
        )
    if not whole and needs_x:
        long = {"ACC": acc, "BLOCK": LONG_ROW_BLOCK, "num_warps": warps(LONG_ROW_BLOCK)}
        launch(_backward_long, (rows,), (*inputs, features, *strides), long | flags)
    if not whole and needs_weight:
        sizes = (rows, features, dy.stride(0), flat.stride(0))
        options["num_warps"] = 8
        columns = triton.cdiv(features, 1024)
        launch(_weight_sums, (parts, columns), (dy, flat, rstd, partial_sums, *sizes), options)
    if needs_weight:
        options = {"ACC": acc, "ROWS": 32, "BLOCK": 32, "num_warps": 4}
        sums = (partial_sums, dweight, parts, features)
        launch(_add_partials, (triton.cdiv(features, 32),), sums, options)
    return dx, dweight


def examples() -> Iterator[Callable[[], object]]:
    """Yield calls that together use every configuration."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        # float16 is treated like bfloat16, and float64 has shorter rows than float32.
        some = dtype in (torch.bfloat16, torch.float32)
        for width in (*(128 << i for i in range(9)), 4100) if some else (1024, 4096, 8192):
            x = torch.empty(64, width, dtype=dtype, device="meta")
            rstd = torch.empty(64, dtype=wide_dtype(dtype), device="meta")
            for residual in (None, x):
                yield partial(rms_norm, x, x[0], residual, 1e-6, 0.0)
                for mask in (1, 2, 3) if width == 4096 else (3,):
                    inputs = (x, residual, x, x[0], rstd)
                    yield partial(rms_norm_backward, *inputs, 1e-6, 0.0, mask)
