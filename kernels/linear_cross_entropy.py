"""Linear cross-entropy on the GPU: torch's matrix products around the kernels of cross_entropy.py.

The rows are processed in chunks: the logits of a chunk are computed in the dtype of the input,
replaced by their gradient (for an upstream gradient of one), multiplied into the gradients of input
and weight, and freed. The gradients of weight and bias are summed in float32 over all chunks and
scaled once, at the end.

Rows whose target is ignored are sorted to the end, on the device. After queueing the first chunk,
the host reads the number of remaining rows from an asynchronous copy, so the GPU never waits for
the host, and chunks of ignored rows are not computed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llama_fast._grad_mask import wanted_gradients
from llama_fast.reference._dtypes import wide_dtype
from llama_fast.reference.cross_entropy import CrossEntropyOptions

from . import cross_entropy as rows

CHUNK_ROWS = 4096


class _Count:
    """A number on the device that is copied to the host in the background."""

    def __init__(self, number: Tensor, upper_bound: int) -> None:
        # During the capture of a CUDA graph the host cannot read it, so every row is computed.
        self.number, self.copied = upper_bound, None
        if not number.is_cuda:
            self.number = int(number)
        elif upper_bound > CHUNK_ROWS and not torch.cuda.is_current_stream_capturing():
            self.host = torch.empty((), dtype=number.dtype, pin_memory=True)
            self.host.copy_(number, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def value(self) -> int:
        """The number, or an upper bound of it; waits for the copy only, not for later work."""
        if self.copied is not None:
            self.copied.synchronize()
            self.number, self.copied = int(self.host), None
        return self.number


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in float32 or wider, added to `out` if given."""
    wide = wide_dtype(a.dtype)
    if a.dtype == wide:
        return a @ b if out is None else out.addmm_(a, b)
    if not a.is_cuda:  # torch has the product of two dtypes on the GPU only
        return _product(a.to(wide), b.to(wide), out)
    if out is None:
        return torch.mm(a, b, out_dtype=wide)
    return torch.addmm(out, a, b, out_dtype=wide, out=out)


def linear_cross_entropy(input: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """The operator llama_fast::linear_cross_entropy."""
    # Autocast was applied before the operator; inside, it would round the products to 16 bits.
    with torch.autocast(input.device.type, enabled=False):
        return _sweep(input, *others)


def _sweep(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None,
    grad_loss: Tensor | None, *arguments: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    options, (stats, mask, *others) = CrossEntropyOptions.split(arguments)
    grad_lse = others[0] if others else None
    wide = wide_dtype(input.dtype)
    N, V = input.shape[0], linear_weight.shape[0]
    wanted = wanted_gradients(mask, 3)
    if options.weight is not None:
        options = options._replace(weight=options.weight.to(wide))
    # In float16, small gradients would round to zero before they are scaled.
    grad_dtype = torch.float32 if input.dtype == torch.float16 else input.dtype
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    grads = [
        input.new_empty(shape if want else 0, dtype=wide if i else grad_dtype)
        for i, (shape, want) in enumerate(zip(shapes, wanted, strict=True))
    ]
    if wanted[0]:
        grads[0].zero_()

    ignored = target == options.ignore_index
    order = torch.argsort(ignored, stable=True)
    count = _Count(N - ignored.sum(), N)
    losses = input.new_zeros(N, dtype=torch.float64)
    z_losses, lse = torch.zeros_like(losses), input.new_zeros(N, dtype=wide)
    argmax = torch.full_like(target, -1) if stats else target.new_empty(0)

    # Describes all rows; their logits never exist at once.
    whole = rows.inputs(input.new_empty(()).expand(N, V), target, options)
    divisors = rows.totals(whole)
    if grad_lse is None:
        upstream, scale, relative = _scales(divisors, options.weight, grad_loss, input)
    else:
        upstream, scale, relative = torch.zeros_like(grad_lse), _largest([grad_lse], input), None
        grad_lse = grad_lse.masked_fill(ignored, 0) / scale

    done = 0
    while done < N and (done == 0 or done < count.value()):
        chunk = order[done : done + CHUNK_ROWS]
        # The last chunk may hold ignored rows: their input, perhaps NaN, must not count.
        gone = ignored[chunk]
        x = input[chunk].masked_fill_(gone.unsqueeze(1), 0)
        logits = torch.nn.functional.linear(x, linear_weight, linear_bias)
        p = rows.inputs(logits, target[chunk], options)
        if any(wanted):
            results = rows.loss_and_gradient(
                p, logits, p.strides, None if upstream is None else upstream[chunk], relative,
                stats, grad_lse=None if grad_lse is None else grad_lse[chunk],
            )  # fmt: skip
        else:
            results = rows.loss_of_rows(p, stats)
        assert results is not None
        losses[chunk], z_losses[chunk] = results.losses, results.z_losses
        lse[chunk] = results.lse.to(wide).masked_fill_(gone, 0)
        if stats:
            argmax[chunk] = results.argmax.masked_fill_(gone, -1)
        if wanted[0]:
            product = _product(logits, linear_weight)
            grads[0][chunk] = product.mul_(scale).to(grad_dtype)
        if wanted[1]:
            if done == 0:
                grads[1] = _product(logits.T, x)
            else:
                _product(logits.T, x, grads[1])
        if wanted[2]:
            grads[2] = logits.sum(0, dtype=wide).add_(grads[2] if done else 0)
        done += CHUNK_ROWS
        del logits  # free them before the next chunk allocates its own
    for i in (1, 2):
        if wanted[i]:
            grads[i] = _finished(grads[i], scale, N, grad_dtype if i == 1 else wide)

    of_rows = rows.RowResults(losses, z_losses, lse, argmax)
    loss, z_part = rows.reduced(whole, of_rows, divisors, True)
    return loss, lse, z_part, argmax, *grads


def _scales(
    divisors: Tensor | None,
    weight: Tensor | None,
    grad_loss: Tensor | None,
    input: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The factors between the gradients in a 16-bit chunk and those of the loss.

    Class weights and upstream gradients are divided by the largest of them, so that float16 does
    not round them to zero or infinity.

    Returns:
        The upstream gradient of each row, or None if all rows have the same; the factor of the
        gradients at the end; and the divisors of cross-entropy and z-loss in the kernel.
    """
    scale = ratio = input.new_ones((), dtype=torch.float64)
    if divisors is not None:
        # If all rows are ignored, the gradient is zero, not 0 / 0.
        scale = torch.where(divisors[1] == 0, 0.0, divisors[0].reciprocal())
        # The final scale is that of cross-entropy; z-loss has another divisor.
        ratio = divisors[1] * scale
    upstream = None
    if grad_loss is not None and grad_loss.dim() == 0:
        scale = scale * grad_loss.double()
    else:
        upstream = grad_loss
    largest = _largest([t for t in (weight, upstream) if t is not None], input)
    return upstream, scale * largest, torch.stack((largest, ratio * largest))


def _largest(factors: list[Tensor], input: Tensor) -> Tensor:
    """The product of their largest elements, or one if that cannot be a divisor."""
    one = input.new_ones((), dtype=torch.float64)
    largest = one
    for factor in factors:
        if factor.numel():
            largest = largest * factor.abs().amax().double()
    return torch.where((largest > 0) & largest.isfinite(), largest, one)


def _finished(grad: Tensor, scale: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Scale the summed gradient and cast it to the operator's dtype, in one pass over it."""
    if rows == 0:
        return torch.zeros_like(grad, dtype=dtype)
    return torch.mul(grad, scale.to(grad.dtype), out=torch.empty_like(grad, dtype=dtype))


def examples() -> Iterator[Callable[[], object]]:
    """Return no calls: the kernels and their configurations are those of cross_entropy.py."""
    return iter(())
