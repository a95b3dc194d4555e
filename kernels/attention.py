"""Attention in Triton, forward and backward: the launchers of the kernels in _attention_*.py.

Tiling: FlashAttention (Dao et al., arXiv:2205.14135 and 2307.08691). Running maximum and sum of
softmax: Milakov and Gimelshein (arXiv:1805.02867). No two programs add to the same memory, so
results are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import triton

from llama_fast.reference import AttentionOptions
from llama_fast.reference._dtypes import wide_dtype

from . import _attention_tuning as tuning
from ._attention_bias_grad import bias_grad_kernel
from ._attention_forward import combine_splits, forward_kernel
from ._attention_key_grad import key_grad_kernel
from ._attention_plan import (
    AttentionProblem,
    Plan,
    StridedTensor,
    Tiling,
    loop_operand,
    make_problem,
    needs_int64_offsets,
    strided_bias,
    strided_heads,
    strided_rows,
)
from ._attention_query_grad import (
    delta_kernel,
    query_grad_kernel,
    slope_sum_kernel,
)
from ._launch import Options, gpu, launch

Tensors = tuple[torch.Tensor, ...]
# Bits of `grad_mask`: which gradients the backward computes.
Q, K, V, BIAS, SLOPES, SINKS = 1, 2, 4, 8, 16, 32
K_AND_V = K | V


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *options: Any) -> Tensors:
    """The operator llama_fast::attention: out, lse, lse_low."""
    problem = make_problem(q, k, v, AttentionOptions(*options))
    out = _like_heads(q, problem.value_size)
    lse = q.new_empty(q.shape[:-1], dtype=problem.sum_dtype)
    results = (out, lse, torch.empty_like(lse))
    if lse.numel() == 0:
        return results
    group = tuning.heads_per_tile(problem)
    rows = problem.queries * group
    tilings = tuning.forward_tilings(problem, gpu(q), rows, (k, v))
    int64_offsets = needs_int64_offsets(q, k, v, out)
    choices = _choices([problem.plan(t, int64_offsets, group) for t in tilings], tilings)
    plan = choices[0]["P"]
    tiles = problem.programs(rows, plan.M, problem.heads // group)
    splits = tuning.key_splits(problem, gpu(q), tiles, plan.N)
    if splits > 1:
        _split_forward(problem, choices[0], (tiles, splits), (q, k, v), results)
        return results

    def grid(choice: Options) -> tuple[int, ...]:
        return (problem.programs(rows, choice["P"].M, problem.heads // group), 1)

    arguments = partial(_forward_arguments, problem, (q, k, v), results)
    launch(forward_kernel, grid, arguments, *choices)
    return results


def _forward_arguments(
    problem: AttentionProblem, inputs: Tensors, results: Tensors, choice: Options
) -> Sequence[Any]:
    (q, k, v), (out, lse, lse_low) = inputs, results
    plan = choice["P"]
    return (
        strided_heads(q),
        *(loop_operand(t, plan.N, plan) for t in (k, v)),
        strided_heads(out),
        *map(strided_rows, (lse, lse_low)),
        *problem.arguments,
        tuning.section_size(problem, plan.GROUP),
    )


def _split_forward(
    problem: AttentionProblem,
    choice: Options,
    grid: tuple[int, int],
    inputs: Tensors,
    results: Tensors,
) -> None:
    """Run the forward pass over splits of each tile's keys, then combine the splits."""
    plan, splits = choice["P"], grid[1]
    B, H, S, DV = results[0].shape
    out = results[0].new_empty(splits * B, H, S, DV, dtype=problem.sum_dtype)
    lse, lse_low = out.new_empty(2, splits * B, H, S)
    parts = (out, lse, lse_low)
    own = choice | {"P": replace(plan, SINKS=False)}
    launch(forward_kernel, grid, _forward_arguments(problem, inputs, parts, choice), own)
    # Log-sum-exps are natural logarithms.
    combine_splits(parts, results, problem.masks, splits, replace(plan, BASE2=False))


class _Backward(NamedTuple):
    """The tensors that the launches of a backward pass share."""

    problem: AttentionProblem
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad_out: torch.Tensor
    lse: torch.Tensor
    lse_low: torch.Tensor
    delta: torch.Tensor
    int64_offsets: bool

    @property
    def row_stats(self) -> tuple[StridedTensor, ...]:
        """The tensors with one number per row of scores that the kernels read."""
        return tuple(map(strided_rows, (self.lse, self.lse_low, self.delta)))

    def choices(self, tilings: Sequence[Tiling]) -> list[Options]:
        """The options of a launch with each tiling."""
        plans = [self.problem.plan(t, self.int64_offsets) for t in tilings]
        return _choices(plans, tilings)


def attention_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    lse_low: torch.Tensor,
    *options_and_mask: Any,
) -> Tensors:
    """The operator llama_fast::attention_backward: gradients of q, k, v, bias, slopes, sinks.

    Those not selected by `grad_mask`, the last argument, are empty.
    """
    options = AttentionOptions(*options_and_mask[:-1])
    mask: int = options_and_mask[-1]
    grad_q, grad_k, grad_v = (
        torch.empty_like(t) if mask & bit else None for bit, t in ((Q, q), (K, k), (V, v))
    )
    int64_offsets = needs_int64_offsets(q, k, v, out, grad_out)
    problem, delta = make_problem(q, k, v, options), torch.empty_like(lse)
    call = _Backward(problem, q, k, v, grad_out, lse, lse_low, delta, int64_offsets)
    sink_parts = _fill_delta(call, out, grad_lse, bool(mask & SINKS))
    slope_parts = grad_bias = None
    if mask & (Q | SLOPES):
        slope_parts = _query_grads(call, grad_q, bool(mask & SLOPES))
    if mask & K_AND_V:
        _key_grads(call, grad_k, grad_v)
    if mask & BIAS and options.bias is not None:
        grad_bias = _bias_grad(call, options.bias)
    grads = (
        grad_q,
        grad_k,
        grad_v,
        grad_bias,
        _sum_to(slope_parts, options.alibi_slopes),
        _sum_to(sink_parts, options.sinks),
    )
    empty = q.new_empty(0)
    return tuple(empty if grad is None else grad for grad in grads)


def _fill_delta(
    call: _Backward, out: torch.Tensor, grad_lse: torch.Tensor | None, needs_sinks: bool
) -> torch.Tensor | None:
    """Compute delta; return the gradient of the sinks per batch entry and head (B,H), or None."""
    problem = call.problem
    tiling = tuning.row_tiling(problem)
    plan = problem.plan(tiling, True)  # grad_lse may have any strides
    # Rows do not depend on each other, so packed sequences are treated as one here.
    batch = 1 if problem.packed else problem.batch
    tiles = triton.cdiv(problem.queries, plan.M)
    programs = batch * problem.heads * tiles
    sink_parts = call.lse.new_empty(programs) if needs_sinks else None
    arguments = (
        *map(strided_heads, (out, call.grad_out)),
        *map(strided_rows, (call.lse, call.lse_low, grad_lse, call.delta)),
        sink_parts,
        problem.masks,
        problem.queries,
    )
    launch(delta_kernel, (programs,), arguments, *_choices([plan], [tiling]))
    if sink_parts is None:
        return None
    return sink_parts.view(batch, problem.heads, tiles).sum(-1, dtype=torch.float64)


def _query_grads(
    call: _Backward, grad_q: torch.Tensor | None, needs_slopes: bool
) -> torch.Tensor | None:
    """Compute grad_q; return the gradient of the slopes per batch entry and head (B,H), or None."""
    problem, lse = call.problem, call.lse
    tilings = tuning.query_grad_tilings(problem, gpu(call.q), (call.k, call.v))
    slope_parts = None
    if needs_slopes and not lse.numel():
        return lse.new_zeros(problem.batch, problem.heads)
    if needs_slopes:  # the layout of slope_parts depends on the tiles
        tilings = tilings[:1]
        slope_parts = lse.new_empty(problem.programs(problem.queries, tilings[0].M, problem.heads))

    def arguments(choice: Options) -> Sequence[Any]:
        plan = choice["P"]
        return (
            strided_heads(call.q),
            *(loop_operand(t, plan.N, plan) for t in (call.k, call.v)),
            strided_heads(call.grad_out),
            *call.row_stats,
            strided_heads(grad_q),
            slope_parts,
            *problem.arguments,
            tuning.section_size(problem, 1),
        )

    def grid(choice: Options) -> tuple[int, ...]:
        return (problem.programs(problem.queries, choice["P"].M, problem.heads),)

    choices = call.choices(tilings)
    launch(query_grad_kernel, grid, arguments, *choices)
    if slope_parts is None:
        return None
    if not problem.packed:
        return slope_parts.view(problem.batch, problem.heads, -1).sum(-1, dtype=torch.float64)
    sums = lse.new_empty(problem.batch, problem.heads, dtype=torch.float64)
    packed = (slope_parts, sums, problem.masks, problem.queries)
    launch(slope_sum_kernel, (sums.numel(),), packed, choices[0] | {"num_warps": 1})
    return sums


def _key_grads(call: _Backward, grad_k: torch.Tensor | None, grad_v: torch.Tensor | None) -> None:
    """Compute grad_k and grad_v."""
    problem = call.problem
    tilings = tuning.key_grad_tilings(problem, gpu(call.q), (call.q, call.grad_out))
    both = grad_k is not None and grad_v is not None
    if both and tuning.separate_key_value_grads(problem, gpu(call.q), tilings[0]):
        _key_grads(call, grad_k, None)
        _key_grads(call, None, grad_v)
        return

    def arguments(choice: Options) -> Sequence[Any]:
        plan = choice["P"]
        return (
            loop_operand(call.q, plan.M, plan),
            *map(strided_heads, (call.k, call.v)),
            loop_operand(call.grad_out, plan.M, plan),
            *call.row_stats,
            *map(strided_heads, (grad_k, grad_v)),
            *problem.arguments,
            tuning.section_size(problem, problem.group),
        )

    def grid(choice: Options) -> tuple[int, ...]:
        return (problem.programs(problem.keys, choice["P"].N, problem.kv_heads),)

    launch(key_grad_kernel, grid, arguments, *call.choices(tilings))


def _bias_grad(call: _Backward, bias: torch.Tensor) -> torch.Tensor:
    """The gradient of the bias, in its shape and dtype."""
    problem = call.problem
    B, H, S, T = bias.shape
    # If the bias has all queries and keys, a program sums over batch and heads. Other gradients are
    # small and computed for each head, as there would be too few programs otherwise.
    whole = S > 1 and T > 1
    batches = problem.batch if whole and B == 1 else 1
    heads = problem.heads if whole and H == 1 else 1
    sizes = (problem.batch // max(batches, 1), problem.heads // max(heads, 1), S, T)
    grad = call.lse.new_empty(sizes)
    (choice,) = call.choices([tuning.bias_grad_tiling(problem, gpu(bias))])
    plan = choice["P"]
    tiles = (1 if S == 1 else triton.cdiv(S, plan.M)) * (1 if T == 1 else triton.cdiv(T, plan.N))
    arguments = (
        *map(strided_heads, (call.q, call.k, call.v, call.grad_out)),
        *call.row_stats,
        strided_bias(grad),
        *problem.arguments[:2],
        *problem.arguments[3:],
        batches,
        heads,
    )
    choice |= {"SUM_ROWS": S == 1, "SUM_COLUMNS": T == 1}
    launch(bias_grad_kernel, (tiles * sizes[0] * sizes[1],), arguments, choice)
    return _sum_to(grad, bias)


def _sum_to(grad: torch.Tensor | None, like: torch.Tensor | None) -> Any:
    """`grad` summed to the shape of `like` and cast to its dtype; or None."""
    if grad is None or like is None:
        return None
    grad = grad.view(-1, *grad.shape[grad.dim() - like.dim() :])
    shared = [0] + [d + 1 for d, n in enumerate(like.shape) if n == 1 and grad.shape[d + 1] != 1]
    if shared == [0] and grad.shape[0] == 1:
        return grad[0].to(like.dtype)
    return grad.sum(shared, keepdim=True, dtype=torch.float64)[0].to(like.dtype)


def _choices(plans: Sequence[Plan], tilings: Sequence[Tiling]) -> list[Options]:
    """The options of a launch for each plan, the default first."""
    return [
        {"P": plan, "num_warps": tiling.warps, "num_stages": tiling.stages}
        for plan, tiling in zip(plans, tilings, strict=True)
    ]


def _like_heads(q: torch.Tensor, size: int) -> torch.Tensor:
    """An output (B,H,S,size) in the layout of q: as (B,S,H,size) in memory if q is such a view."""
    if q.dim() == 4 and q.stride(1) < q.stride(2):
        B, H, S, _ = q.shape
        return q.new_empty(B, S, H, size).transpose(1, 2)
    return q.new_empty(*q.shape[:-1], size)


def examples() -> Iterator[Callable[[], object]]:
    """Yield calls that together use every configuration."""
    for D in (64, 128, 256, 512):
        for features in ("causal", "packed", "all"):
            yield partial(_example, torch.bfloat16, D, features)
    for D in (64, 128):
        for features in ("packed", "all"):
            yield partial(_example, torch.float32, D, features)
    for dtype, D, features in (
        (torch.float32, 512, "all"),
        (torch.float64, 64, "causal"),  # for gradcheck: with all features on, it spills
        (torch.float32, 64, ""),
        (torch.bfloat16, 128, ""),
        (torch.bfloat16, 64, "window"),
        (torch.bfloat16, 128, "window"),
        (torch.bfloat16, 96, "causal"),
        (torch.float16, 128, "causal"),
    ):
        yield partial(_example, dtype, D, features)
    for D in (64, 128, 256, 512):
        for queries in (1, 16):  # few queries, so that heads of a group share a tile
            yield partial(_example, torch.bfloat16, D, "causal", queries)


def _example(dtype: torch.dtype, D: int, features: str, queries: int = 4096) -> None:
    """Call forward and backward on meta tensors."""
    B, H, K, T = 2, 8, 2, 4096

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    q, k, v = (empty(B, n, h, D).transpose(1, 2) for n, h in ((queries, H), (T, K), (T, K)))
    options = AttentionOptions(causal=features != "", scale=D**-0.5)
    mask = Q | K_AND_V
    if features == "packed":
        q, k, v = (t.transpose(1, 2)[0] for t in (q, k, v))
        cu = empty(9, of=torch.int32)
        options = options._replace(cu_seqlens_q=cu, cu_seqlens_k=cu)
    if features in ("window", "all"):
        options = options._replace(window_left=1000, window_right=1000)
    if features == "all":
        options = options._replace(
            bias=empty(B, H, queries, T, of=wide_dtype(dtype)),
            key_padding_mask=empty(B, T, of=torch.bool),
            alibi_slopes=empty(1, H),
            sinks=empty(H),
            softcap=10.0,
        )
        mask |= BIAS | SLOPES | SINKS
    if features == "all" and D < 512:
        # With dropout and all other options, heads of 512 spill 16 bytes on sm_80.
        options = options._replace(dropout_seed=empty(1, of=torch.int64), dropout_p=0.1)
    out, lse, lse_low = attention(q, k, v, *options)
    if queries == T:
        attention_backward(out, lse, q, k, v, out, lse, lse_low, *options, mask)
