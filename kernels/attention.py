"""Attention in Triton, forward and backward: the launchers of the kernels in _attention_*.py.

The tiling is that of FlashAttention (Dao et al., arXiv:2205.14135 and 2307.08691), the running
maximum and sum of softmax those of Milakov and Gimelshein (arXiv:1805.02867). No kernel adds to
memory that another program adds to, so results are the same at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from llama_fast.kernels import _attention_tuning as tuning
from llama_fast.kernels._attention_bias_grad import bias_grad_kernel
from llama_fast.kernels._attention_forward import combine_kernel, forward_kernel
from llama_fast.kernels._attention_key_grad import key_grad_kernel
from llama_fast.kernels._attention_plan import (
    Plan,
    Problem,
    Tiling,
    broadcast,
    describe,
    heads_of,
    in_steps,
    rows_of,
    wide,
)
from llama_fast.kernels._attention_query_grad import (
    delta_kernel,
    query_grad_kernel,
    slope_sum_kernel,
)
from llama_fast.kernels._launch import Options, gpu, launch

Tensors = tuple[torch.Tensor, ...]
# Bits of `grad_mask`: which gradients the backward makes.
Q, K, V, BIAS, SLOPES, SINKS = 1, 2, 4, 8, 16, 32
K_AND_V = K | V


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *options: Any) -> Tensors:
    """The operator llama_fast::attention: out, lse, lse_low."""
    problem = describe(q, k, v, *options)
    out = _like_heads(q, problem.value_size)
    lse = q.new_empty(q.shape[:-1], dtype=problem.accumulate)
    lse_low = torch.empty_like(lse)
    if lse.numel() == 0:
        return out, lse, lse_low
    group = tuning.shared_heads(problem)
    tilings = tuning.forward_tilings(problem, gpu(q), problem.queries * group, (k, v))
    far = wide(q, k, v, out)
    choices = _options([problem.plan(t, far, GROUP=group) for t in tilings], tilings)
    plan = choices[0]["P"]
    tiles = problem.programs(problem.queries * group, plan.M, problem.heads // group)
    shares = tuning.key_shares(problem, gpu(q), tiles, plan.N)
    if shares > 1:
        _in_shares(problem, choices[0], (tiles, shares), (q, k, v), (out, lse, lse_low))
        return out, lse, lse_low

    def arguments(options: Options) -> Sequence[Any]:
        plan = options["P"]
        return (
            heads_of(q),
            in_steps(k, plan.N, plan),
            in_steps(v, plan.N, plan),
            heads_of(out),
            rows_of(lse),
            rows_of(lse_low),
            *problem.arguments,
            tuning.heads_together(problem, group),
        )

    def grid(options: Options) -> tuple[int, ...]:
        rows = problem.queries * group
        return (problem.programs(rows, options["P"].M, problem.heads // group), 1)

    launch(forward_kernel, grid, arguments, *choices)
    return out, lse, lse_low


def _in_shares(
    problem: Problem, options: Options, grid: tuple[int, int], inputs: Tensors, results: Tensors
) -> None:
    """The forward pass with the keys of each tile in shares, whose results are put together."""
    q, k, v = inputs
    out, lse, lse_low = results
    plan, shares = options["P"], grid[1]
    B, H, S, DV = out.shape
    parts = out.new_empty(shares * B, H, S, DV, dtype=problem.accumulate)
    part_lse, part_low = parts.new_empty(2, shares * B, H, S)
    arguments = (
        heads_of(q),
        in_steps(k, plan.N, plan),
        in_steps(v, plan.N, plan),
        heads_of(parts),
        rows_of(part_lse),
        rows_of(part_low),
        *problem.arguments,
        tuning.heads_together(problem, plan.GROUP),
    )
    launch(forward_kernel, grid, arguments, options | {"P": replace(plan, SINKS=False)})
    arguments = (
        heads_of(parts),
        rows_of(part_lse),
        rows_of(part_low),
        heads_of(out),
        rows_of(lse),
        rows_of(lse_low),
        problem.masks,
        B,
        shares,
        S,
    )
    natural = replace(plan, BASE2=False)  # log-sum-exps are
    launch(combine_kernel, (B * H * S,), arguments, {"P": natural, "num_warps": 4})


def attention_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    lse_low: torch.Tensor,
    *options: Any,
) -> Tensors:
    """The operator llama_fast::attention_backward: gradients of q, k, v, bias, slopes, sinks."""
    *options, mask = options  # type: ignore[assignment]
    problem = describe(q, k, v, *options)
    bias, _, slopes, sinks, *_ = options
    grad_q, grad_k, grad_v = (
        torch.empty_like(t) if mask & bit else None for bit, t in ((Q, q), (K, k), (V, v))
    )
    delta = torch.empty_like(lse)
    far = wide(q, k, v, out, grad_out)
    given = (grad_out, lse, lse_low, delta)
    sink_parts = _row_products(problem, out, grad_lse, given, mask)
    slope_parts = None
    if mask & (Q | SLOPES):
        slope_parts = _query_grads(problem, (q, k, v), given, grad_q, mask, far)
    if mask & K_AND_V:
        _key_grads(problem, (q, k, v), given, grad_k, grad_v, far)
    none = q.new_empty(0)
    return (
        none if grad_q is None else grad_q,
        none if grad_k is None else grad_k,
        none if grad_v is None else grad_v,
        _bias_grad(problem, (q, k, v), given, bias, far) if mask & BIAS else none,
        none if slope_parts is None else _summed(slope_parts, slopes),
        none if sink_parts is None else _summed(sink_parts, sinks),
    )


def _row_products(
    problem: Problem,
    out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    given: Tensors,
    mask: int,
) -> torch.Tensor | None:
    """Fill delta; what the rows of each head add to the gradient of its sink, (B,H), if wanted."""
    grad_out, lse, lse_low, delta = given
    tiling = tuning.row_tiling(problem)
    plan = problem.plan(tiling, True)  # grad_lse may have any strides
    # Packed sequences are as good as one here: their rows do not meet.
    batch = 1 if problem.packed else problem.batch
    tiles = -(-problem.queries // plan.M)
    programs = batch * problem.heads * tiles
    sink_parts = lse.new_empty(programs) if mask & SINKS else None
    arguments = (
        heads_of(out),
        heads_of(grad_out),
        rows_of(lse),
        rows_of(lse_low),
        rows_of(grad_lse),
        rows_of(delta),
        sink_parts,
        problem.masks,
        problem.queries,
    )
    launch(delta_kernel, (programs,), arguments, *_options([plan], [tiling]))
    if sink_parts is None:
        return None
    return sink_parts.view(batch, problem.heads, tiles).sum(-1, dtype=torch.float64)


def _query_grads(
    problem: Problem,
    inputs: Tensors,
    given: Tensors,
    grad_q: torch.Tensor | None,
    mask: int,
    far: bool,
) -> torch.Tensor | None:
    """Fill grad_q; the gradient of the slope of each head, (B,H), if wanted."""
    q, k, v = inputs
    grad_out, lse, lse_low, delta = given
    tilings = tuning.query_grad_tilings(problem, gpu(q), (k, v))
    if not mask & SLOPES:
        slope_parts = None
    elif not lse.numel():
        return lse.new_zeros(problem.batch, problem.heads)
    else:  # whose layout depends on the tiles
        tilings = tilings[:1]
        slope_parts = lse.new_empty(problem.programs(problem.queries, tilings[0].M, problem.heads))

    def arguments(options: Options) -> Sequence[Any]:
        plan = options["P"]
        return (
            heads_of(q),
            in_steps(k, plan.N, plan),
            in_steps(v, plan.N, plan),
            heads_of(grad_out),
            rows_of(lse),
            rows_of(lse_low),
            rows_of(delta),
            heads_of(grad_q),
            slope_parts,
            *problem.arguments,
            tuning.heads_together(problem, 1),
        )

    def grid(options: Options) -> tuple[int, ...]:
        return (problem.programs(problem.queries, options["P"].M, problem.heads),)

    choices = _options([problem.plan(t, far) for t in tilings], tilings)
    launch(query_grad_kernel, grid, arguments, *choices)
    if slope_parts is None:
        return None
    if not problem.packed:
        return slope_parts.view(problem.batch, problem.heads, -1).sum(-1, dtype=torch.float64)
    sums = lse.new_empty(problem.batch, problem.heads, dtype=torch.float64)
    packed = (slope_parts, sums, problem.masks, problem.queries)
    launch(slope_sum_kernel, (sums.numel(),), packed, choices[0] | {"num_warps": 1})
    return sums


def _key_grads(
    problem: Problem,
    inputs: Tensors,
    given: Tensors,
    grad_k: torch.Tensor | None,
    grad_v: torch.Tensor | None,
    far: bool,
) -> None:
    """Fill grad_k and grad_v."""
    q, k, v = inputs
    grad_out, lse, lse_low, delta = given
    tilings = tuning.key_grad_tilings(problem, gpu(q), (q, grad_out))
    both = grad_k is not None and grad_v is not None
    if both and tuning.keys_and_values_apart(problem, gpu(q), tilings[0]):
        _key_grads(problem, inputs, given, grad_k, None, far)
        _key_grads(problem, inputs, given, None, grad_v, far)
        return

    def arguments(options: Options) -> Sequence[Any]:
        plan = options["P"]
        return (
            in_steps(q, plan.M, plan),
            heads_of(k),
            heads_of(v),
            in_steps(grad_out, plan.M, plan),
            rows_of(lse),
            rows_of(lse_low),
            rows_of(delta),
            heads_of(grad_k),
            heads_of(grad_v),
            *problem.arguments,
            tuning.heads_together(problem, problem.group),
        )

    def grid(options: Options) -> tuple[int, ...]:
        return (problem.programs(problem.keys, options["P"].N, problem.kv_heads),)

    choices = _options([problem.plan(t, far) for t in tilings], tilings)
    launch(key_grad_kernel, grid, arguments, *choices)


def _bias_grad(
    problem: Problem, inputs: Tensors, given: Tensors, bias: torch.Tensor, far: bool
) -> torch.Tensor:
    """The gradient of the bias, in its shape and dtype."""
    B, H, S, T = bias.shape
    # A gradient with all queries and keys is summed over batch and heads where it is made. Others
    # are small, and made for each head: there would be too few programs otherwise.
    whole = S > 1 and T > 1
    batches = problem.batch if whole and B == 1 else 1
    heads = problem.heads if whole and H == 1 else 1
    sizes = (problem.batch // max(batches, 1), problem.heads // max(heads, 1), S, T)
    grad_out, lse, lse_low, delta = given
    grad = lse.new_empty(sizes)
    tiling = tuning.bias_grad_tiling(problem, gpu(bias))
    plan = problem.plan(tiling, far)
    tiles = (1 if S == 1 else -(-S // plan.M)) * (1 if T == 1 else -(-T // plan.N))
    arguments = (
        *map(heads_of, inputs),
        heads_of(grad_out),
        rows_of(lse),
        rows_of(lse_low),
        rows_of(delta),
        broadcast(grad),
        *problem.arguments[:2],
        *problem.arguments[3:],
        batches,
        heads,
    )
    (options,) = _options([plan], [tiling])
    options |= {"SUM_ROWS": S == 1, "SUM_COLUMNS": T == 1}
    launch(bias_grad_kernel, (tiles * sizes[0] * sizes[1],), arguments, options)
    return _summed(grad, bias)


def _summed(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`grad` summed over the dimensions that `like` lacks or has once, in its dtype."""
    grad = grad.view(-1, *grad.shape[grad.dim() - like.dim() :])
    shared = [0] + [d + 1 for d, n in enumerate(like.shape) if n == 1 and grad.shape[d + 1] != 1]
    if shared == [0] and grad.shape[0] == 1:
        return grad[0].to(like.dtype)
    return grad.sum(shared, keepdim=True, dtype=torch.float64)[0].to(like.dtype)


def _options(plans: Sequence[Plan], tilings: Sequence[Tiling]) -> list[Options]:
    """What is launched for these plans, the default first."""
    return [
        {"P": plan, "num_warps": tiling.warps, "num_stages": tiling.stages}
        for plan, tiling in zip(plans, tilings, strict=True)
    ]


def _like_heads(q: torch.Tensor, size: int) -> torch.Tensor:
    """An output (B,H,S,size) laid out as q is: heads inside rows if q is a (B,S,H,D) view."""
    if q.dim() == 4 and q.stride(1) < q.stride(2):
        B, H, S, _ = q.shape
        return q.new_empty(B, S, H, size).transpose(1, 2)
    return q.new_empty(*q.shape[:-1], size)


def examples() -> Iterator[Callable[[], object]]:
    """Calls that reach every configuration."""
    for D in (64, 128, 256, 512):
        for features in ("causal", "packed", "rich"):
            yield lambda a=(torch.bfloat16, D, features): _example(*a)
    for D in (64, 128):
        for features in ("packed", "rich"):
            yield lambda a=(torch.float32, D, features): _example(*a)
    for dtype, D, features in (
        (torch.float32, 512, "rich"),
        (torch.float64, 64, "causal"),  # for checks of derivatives: with everything on, it spills
        (torch.float32, 64, ""),
        (torch.bfloat16, 128, ""),
        (torch.bfloat16, 64, "window"),
        (torch.bfloat16, 128, "window"),
        (torch.bfloat16, 96, "causal"),
        (torch.float16, 128, "causal"),
    ):
        yield lambda a=(dtype, D, features): _example(*a)
    for D in (64, 128, 256, 512):
        for queries in (1, 16):  # few: heads of a group share a tile
            yield lambda a=(D, queries): _example(torch.bfloat16, a[0], "causal", a[1])


def _example(dtype: torch.dtype, D: int, features: str, queries: int = 4096) -> None:
    """Forward and backward on tensors without memory."""
    B, H, K, T = 2, 8, 2, 4096

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    q, k, v = (empty(B, n, h, D).transpose(1, 2) for n, h in ((queries, H), (T, K), (T, K)))
    bias = padding = slopes = sinks = cu = seed = None
    mask = Q | K_AND_V
    if features == "packed":
        q, k, v = (t.transpose(1, 2)[0] for t in (q, k, v))
        cu = empty(9, of=torch.int32)
    if features == "rich":
        single = torch.float64 if dtype == torch.float64 else torch.float32
        bias, padding = empty(B, H, queries, T, of=single), empty(B, T, of=torch.bool)
        slopes, sinks = empty(1, H), empty(H)
        # With dropout on top of all this, heads of 512 spill 16 bytes on sm_80.
        seed = empty(1, of=torch.int64) if D < 512 else None
        mask |= BIAS | SLOPES | SINKS
    side = 1000 if features in ("window", "rich") else -1
    options = (
        *(bias, padding, slopes, sinks, cu, cu, seed),
        *(features != "", side, side, D**-0.5, 10.0 if features == "rich" else 0.0),
        0.1 if seed is not None else 0.0,
    )
    out, lse, lse_low = attention(q, k, v, *options)
    if queries == T:
        attention_backward(out, lse, q, k, v, out, lse, lse_low, *options, mask)
