"""Backend "chunked" of linear_cross_entropy: computes a few hundred rows of logits at a time.

One pass over the rows gives the loss and the gradients. Each chunk's logits are replaced by their
gradient, which is multiplied into the gradients of input and weight and then freed, so the (N,V)
logits never exist as a whole. Rows whose target is ignored are left out. After Wijmans
et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009) and Hsu et al.
2024 (Liger-Kernel, arXiv:2410.10989), which also computes gradients in the forward pass.

With a process group each rank holds V / world rows of the weight, and the ranks exchange a few
numbers for each token: the vocabulary-parallel loss of Megatron-LM (arXiv:1909.08053).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from llama_fast._grad_mask import wanted_gradients
from llama_fast._torch_internals import process_group
from llama_fast.ops._checks import check_targets
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.library import library
from llama_fast.reference._dtypes import compute_dtype
from llama_fast.reference.cross_entropy import MEAN, NONE, SUM, CrossEntropyOptions

# The logits of a chunk take about 48 MB, which is small beside the weight and its gradient. With
# fewer than 256 rows, reading the weight would take most of the time of the matrix products.
CHUNK_BYTES = 48 << 20
MINIMUM_ROWS = 256
# A 16-bit weight is converted to float32 in pieces of this many elements, never as a whole.
WIDEN_ELEMENTS = 4 << 20


def resolve_group(name: str) -> dist.ProcessGroup | None:
    """The process group of this name, None for "". Operators take a name, not a group."""
    return process_group(name) if name else None


def rows_per_chunk(classes: int, itemsize: int) -> int:
    """The number of rows of logits that are computed at once."""
    return max(MINIMUM_ROWS, CHUNK_BYTES // max(1, classes * itemsize))


def empty_results(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    linear_bias: torch.Tensor | None,
    grad_loss: torch.Tensor | None,
    *arguments: Any,
) -> tuple[torch.Tensor, ...]:
    """Empty tensors with the shapes of the results; `dtypes` are those of the gradients."""
    options, (stats, mask, *_) = CrossEntropyOptions.split(arguments)
    lse = input.new_empty(target.shape, dtype=compute_dtype(input))
    loss = torch.empty_like(lse) if options.reduction == NONE else lse.new_empty(())
    argmax = torch.empty_like(target) if stats else target.new_empty(0)
    shapes = gradient_shapes(input, linear_weight, wanted_gradients(mask, 3))
    grads = [input.new_empty(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]
    return loss, lse, torch.empty_like(loss), argmax, *grads


def gradient_shapes(
    input: torch.Tensor, linear_weight: torch.Tensor, wanted: list[bool]
) -> list[tuple[int, ...]]:
    """Shapes of the gradients of input, weight and bias; (0,) for those not wanted."""
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    return [tuple(s) if want else (0,) for s, want in zip(shapes, wanted, strict=True)]


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None,
    grad_loss: torch.Tensor | None,
    *arguments: Any,
) -> tuple[torch.Tensor, ...]:
    """The operator llama_fast::linear_cross_entropy_chunked.

    Args:
        input, linear_weight, target: (N,E), (V,E) or this rank's rows of it, (N,) int64.
        grad_loss: upstream gradient, of the shape of the loss; None means one.
        *arguments: the `CrossEntropyOptions`, then
            stats: whether argmax is wanted.
            grad_mask: which of the gradients of input, linear_weight and linear_bias are wanted.
            grad_lse: (N,), or None. If given, the gradients are those of (grad_lse * lse).sum()
                instead, and the other results have no meaning.
            group_name: name of the process group, "" for none.

    Returns:
        A tuple of loss; lse (N,), 0 for ignored tokens; the z-loss part of the loss; argmax (N,),
        -1 for ignored tokens, or (0,) without `stats`; and three gradients, (0,) for those not
        wanted. All but argmax have the dtype of the computation.
    """
    options, (stats, mask, *others) = CrossEntropyOptions.split(arguments)
    grad_lse = others[0] if others else None  # torch omits trailing arguments equal to defaults
    group_name = others[1] if len(others) > 1 else ""
    weight, ignore_index, reduction, z_loss = *options[:3], options.z_loss
    wanted = wanted_gradients(mask, 3)
    dtype = compute_dtype(input)
    group = resolve_group(group_name)
    classes = linear_weight.shape[0] * _world_size(linear_weight.shape[0], group)
    check_targets(target, classes, ignore_index)
    kept = (target != ignore_index).nonzero().squeeze(1)
    weight = None if weight is None else weight.to(dtype)
    tokens = kept.numel()
    divisor = tokens if weight is None else weight[target[kept]].sum().item()

    z_coefficient = z_loss
    row_scale = input.new_ones((), dtype=dtype) if grad_loss is None else grad_loss.to(dtype)
    if reduction == MEAN:
        row_scale = row_scale / divisor
        # The mean divides cross-entropy by the sum of the class weights, but z-loss by the number
        # of tokens. With z-loss scaled by the ratio of the two, one division is right for both.
        z_coefficient *= divisor / max(1, tokens)
    row_scale = row_scale.expand(target.shape)
    # A chunk has no ignored targets: -1 equals none of its class indices.
    of_chunk = options._replace(
        weight=weight, ignore_index=-1, reduction=NONE, z_loss=z_coefficient
    )

    losses = input.new_zeros(target.shape, dtype=dtype)
    lse = torch.zeros_like(losses)
    argmax = torch.full_like(target, -1) if stats else target.new_empty(0)
    shapes = gradient_shapes(input, linear_weight, wanted)
    grads = [input.new_zeros(shape, dtype=dtype) for shape in shapes]
    rows_at_once = rows_per_chunk(linear_weight.shape[0], losses.element_size())
    for rows in kept.split(rows_at_once) if tokens else ():  # an empty split is one piece
        x = input[rows].to(dtype)
        logits = _logits(x, linear_weight, linear_bias)
        # Scaling the small operands instead of the logits saves another pass over the logits.
        if grad_lse is not None:
            _softmax_(logits, options.softcap, group)
            scale = grad_lse[rows].to(dtype).unsqueeze(1)
        else:
            losses[rows], lse[rows], top = _cross_entropy_(
                logits, target[rows], of_chunk, group, any(wanted), stats
            )
            if stats:
                argmax[rows] = top
            scale = row_scale[rows].unsqueeze(1)
        if wanted[0]:
            grads[0][rows] = _times_weight(logits, linear_weight) * scale
        if wanted[1]:
            grads[1].addmm_(logits.T, x * scale)
        if wanted[2]:
            # Not a matrix product with `scale`: it would sum the rows one after another.
            grads[2] += logits.mul_(scale).sum(dim=0)
        del logits  # free them before the next chunk allocates its own
    if group is not None and wanted[0]:
        dist.all_reduce(grads[0], group=group)

    # Not 0 * lse^2, which overflows to NaN for logits of 1e20.
    z_part = z_loss * lse.square() if z_loss else torch.zeros_like(lse)
    loss = losses
    if reduction == MEAN:  # 0 / 0 when every target is ignored
        loss, z_part = losses.sum() / divisor, z_part.sum() / tokens
    elif reduction == SUM:
        loss, z_part = losses.sum(), z_part.sum()
    return loss, lse, z_part, argmax, *grads


def _shapes(
    input: torch.Tensor, linear_weight: torch.Tensor, target: torch.Tensor, *arguments: Any
) -> tuple[torch.Tensor, ...]:
    """The operator's shape rule, for torch.compile and meta tensors."""
    return empty_results(input, linear_weight, target, (compute_dtype(input),) * 3, *arguments)


for _device in ("cpu", "cuda"):
    # Autocast was applied before the operator; inside, it would round the products to 16 bits.
    _wide = torch.autocast(_device, enabled=False)(linear_cross_entropy)
    library.impl("linear_cross_entropy_chunked", _wide, _device.upper())
torch.library.register_fake("llama_fast::linear_cross_entropy_chunked", _shapes, lib=library)


def _logits(
    x: torch.Tensor, linear_weight: torch.Tensor, linear_bias: torch.Tensor | None
) -> torch.Tensor:
    """x (R,E) @ linear_weight.T + linear_bias, in the dtype of x."""
    if linear_weight.dtype == x.dtype:
        logits = x @ linear_weight.T
    else:
        logits = x.new_empty(x.shape[0], linear_weight.shape[0])
        for columns, piece in _widened(linear_weight, x.dtype):
            torch.mm(x, piece.T, out=logits[:, columns])
    return logits if linear_bias is None else logits.add_(linear_bias)


def _times_weight(grad_logits: torch.Tensor, linear_weight: torch.Tensor) -> torch.Tensor:
    """grad_logits (R,V) @ linear_weight, in the dtype of grad_logits."""
    if linear_weight.dtype == grad_logits.dtype:
        return grad_logits @ linear_weight
    product = grad_logits.new_zeros(grad_logits.shape[0], linear_weight.shape[1])
    for columns, piece in _widened(linear_weight, grad_logits.dtype):
        product.addmm_(grad_logits[:, columns], piece)
    return product


def _widened(
    linear_weight: torch.Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (slice of rows, those rows of the weight in `dtype`), piece by piece."""
    step = max(1, WIDEN_ELEMENTS // max(1, linear_weight.shape[1]))
    for first in range(0, linear_weight.shape[0], step):
        rows = slice(first, first + step)
        yield rows, linear_weight[rows].to(dtype)


def _world_size(rows: int, group: dist.ProcessGroup | None) -> int:
    """Number of ranks; ValueError unless all hold the same number of rows of the weight."""
    if group is None:
        return 1
    held = [0] * group.size()
    dist.all_gather_object(held, rows, group=group)
    if len(set(held)) > 1:
        raise ValueError(
            f"linear_weight: expected the same number of rows on every rank, got {held}"
        )
    return group.size()


def _gather(t: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The tensors of all ranks, stacked along a new first dimension."""
    if group is None:
        return t.unsqueeze(0)
    parts = [torch.empty_like(t) for _ in range(group.size())]
    dist.all_gather(parts, t, group=group)
    return torch.stack(parts)


def _softmax_(logits: torch.Tensor, softcap: float, group: dist.ProcessGroup | None) -> None:
    """Replace the logits of some rows by the gradient of their log-sum-exp."""
    slope = None
    if softcap:
        logits.div_(softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(softcap)
    top = _gather(logits.amax(dim=1, keepdim=True), group).amax(dim=0)
    logits.sub_(top).exp_()
    logits.div_(_gather(logits.sum(dim=1, keepdim=True), group).sum(dim=0))
    if slope is not None:
        logits.mul_(slope)


def _cross_entropy_(
    logits: torch.Tensor,
    target: torch.Tensor,
    options: CrossEntropyOptions,
    group: dist.ProcessGroup | None,
    gradient: bool,
    stats: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, lse and argmax of each row; with `gradient`, the logits become the loss's gradient."""
    backend = choose("cross_entropy", logits)
    if group is None and backend not in ("torch", "reference"):
        ops = torch.ops.llama_fast
        kernel = ops.cross_entropy_inplace if gradient else ops.cross_entropy
        loss, lse, _, argmax = kernel(logits, target, *options, stats)
        return loss, lse.to(loss.dtype), argmax

    # The formula of llama_fast/reference/cross_entropy.py, on this rank's classes.
    weight, _, _, label_smoothing, softcap, z_loss = options
    z, held = logits, logits.shape[1]
    first = 0 if group is None else group.rank() * held
    classes = held * (1 if group is None else group.size())
    w = torch.ones_like(z[0]) if weight is None else weight[first : first + held]
    w_label = torch.ones_like(z[:, 0]) if weight is None else weight[target]
    w_sum = classes if weight is None else weight.sum()
    mine = (target >= first) & (target < first + held)
    column = torch.where(mine, target - first, 0).unsqueeze(1)
    top, argmax = z.max(dim=1)  # before the softcap, which can make different logits equal
    tops = _gather(top, group)
    top, owner = tops.max(dim=0, keepdim=True)
    argmax = _gather(argmax + first, group).gather(0, owner).squeeze(0)
    if softcap:
        z.div_(softcap).tanh_()
        slope = 1 - z.square() if gradient else None
        z.mul_(softcap)
        top = softcap * torch.tanh(top / softcap)

    # Logits relative to the largest, and p as a quotient: exp(z - lse) would lose the last digits
    # of p to the rounding of lse.
    z.sub_(top.T)
    z_label = torch.where(mine, z.gather(1, column).squeeze(1), 0)
    z_sum = z @ w if label_smoothing else torch.zeros_like(z_label)
    exp_sum = z.exp_().sum(dim=1)
    exp_sum, z_label, z_sum = _gather(torch.stack([exp_sum, z_label, z_sum]), group).sum(dim=0)
    log_sum = exp_sum.log()
    lse = top.squeeze(0) + log_sum

    smooth = label_smoothing / classes
    loss = (1 - label_smoothing) * w_label * (log_sum - z_label)
    if z_loss:
        loss += z_loss * lse.square()
    if label_smoothing:
        loss += smooth * (w_sum * log_sum - z_sum)
    if gradient:
        p_coefficient = (1 - label_smoothing) * w_label + smooth * w_sum + 2 * z_loss * lse
        z.mul_((p_coefficient / exp_sum).unsqueeze(1))
        if label_smoothing:
            z.sub_(smooth * w)
        at_label = torch.where(mine, (label_smoothing - 1) * w_label, 0)
        z.scatter_add_(1, column, at_label.unsqueeze(1))
        if softcap:
            z.mul_(slope)
    return loss, lse, argmax
