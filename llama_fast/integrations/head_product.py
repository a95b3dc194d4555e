"""The product of hidden states and a head's weight, computed at first access, from the values of
the forward pass.

Between the forward pass and an access the weight may change: the optimizer steps, or FSDP shards it
again. Before an optimizer step, and before a backward pass that may shard weights, the weight is
copied for logits that are still referenced; the next forward pass drops the copy. Any other change
is detected and makes the access an error.

A loss that was computed without the logits can still be differentiated with respect to them: once
the logits have a hook or retain their gradient, the backward pass of the loss goes through them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from llama_fast._torch_internals import has_dispatch_mode, in_forward_ad, in_transform
from llama_fast.ops._autocast import without_autocast

# About this many elements of a tensor are compared to detect writes that leave its version.
_SAMPLE_SIZE = 4096
_PLAIN = (torch.Tensor, nn.Parameter)
_live_products: weakref.WeakSet[HeadProduct] = weakref.WeakSet()
_hooks: list[Any] = []


class TensorMethod(NamedTuple):
    """A tensor method and its arguments: one operation of a model on its logits."""

    name: str
    arguments: tuple[Any, ...]

    def __call__(self, x: torch.Tensor) -> Any:
        """The result of the method on `x`."""
        return getattr(x, self.name)(*self.arguments)


class _TensorState:
    """A tensor, and what is needed to detect later changes of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        eager = not torch.compiler.is_compiling()
        plain = type(tensor) in _PLAIN and tensor.device.type != "meta"
        if eager and (in_transform() or has_dispatch_mode()):
            plain = False
        self.tensor = tensor
        self.version = tensor._version if eager and not tensor.is_inference() else None
        self.stored = plain  # torch.func wrappers have no storage of their own
        self.sample = _sample(tensor) if plain else None

    def problem(self, thorough: bool) -> str:
        """What happened to the tensor, "" if nothing. `thorough` also synchronises with a GPU."""
        t = self.tensor
        if torch.compiler.is_compiling():
            return ""
        if self.stored and t.numel() > 0 and t.untyped_storage().nbytes() == 0:
            return "freed, as FSDP does when it shards a model again"
        if self.version is not None and t._version != self.version:
            return "changed in place"
        if thorough and self.sample is not None:
            now = _sample(t)
            if now.shape != self.sample.shape or now.dtype != self.sample.dtype:
                return "replaced"
            same = (now == self.sample) | (now.isnan() & self.sample.isnan())
            if not bool(same.all()):
                return "changed in place"
        return ""


def _sample(x: torch.Tensor) -> torch.Tensor:
    each = round(_SAMPLE_SIZE ** (1 / max(x.dim(), 1)))
    return x.detach()[tuple(slice(None, None, max(1, n // each)) for n in x.shape)].clone()


class _SavedWeight(torch.autograd.Function):
    """Forward: the values of a copy. Backward: the gradient goes to the copied parameter."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class HeadProduct:
    """``hidden @ weight.T + bias`` of one forward pass.

    Args:
        hidden: (..., E).
        head: the head; its current weight (V,E) and bias (V,) are used.
        dtype: the dtype of the product.

    Attributes:
        hidden: (..., E).
        handles: the :class:`LazyLogits` that are still referenced. Each has `steps`, the methods
            applied to the product, and gets `tensor` when it is computed. None while a compiler
            traces.
        loss_skipped_logits: whether a loss was computed without the logits.
    """

    def __init__(self, hidden: torch.Tensor, head: nn.Linear, dtype: torch.dtype) -> None:
        self.hidden, self.weight, self.bias = hidden, head.weight, head.bias
        self.dtype = dtype
        self.loss_skipped_logits = False
        self.handles: weakref.WeakSet[Any] | None = None
        self._states = [_TensorState(t) for t in (hidden, self.weight, self.bias) if t is not None]
        self._copies: tuple[torch.Tensor | None, ...] | None = None
        self._optimizer_stepped, self._computed, self._lost_reason, self._untracked = (
            False,
            False,
            "",
            False,
        )
        self._used: list[torch.Tensor | None] = []  # views: a tied weight is part of hidden, too
        self._records: Any = None
        self._wanted: list[Any] = []  # handles with hooks
        if not torch.compiler.is_compiling():
            self.handles, self._records = weakref.WeakSet(), weakref.WeakSet()
            _register(self)

    @property
    def requires_grad(self) -> bool:
        """Whether the logits require gradients."""
        return any(state.tensor.requires_grad for state in self._states)

    def inputs(self, thorough: bool = False) -> list[torch.Tensor | None]:
        """Hidden states, weight and bias as they were in the forward pass, in the product's dtype.

        Raises:
            RuntimeError: their values are no longer available.
        """
        checked = self._states if self._copies is None else self._states[:1]
        problem = self._lost_reason or self._problem(checked, thorough)
        if problem:
            raise RuntimeError(
                f"logits: they are computed at first access, but {problem}. Access them before "
                "that, or keep them with llama_fast.patch(model, loss=False)"
            )
        weights: tuple[torch.Tensor | None, ...] = (self.weight, self.bias)
        if self._copies is not None:
            weights = tuple(
                None if w is None or copy is None else _SavedWeight.apply(w, copy)
                for w, copy in zip(weights, self._copies, strict=True)
            )
        return [None if t is None else t.to(self.dtype) for t in (self.hidden, *weights)]

    def compute(self, handle: Any) -> None:
        """Compute the tensors of `handle` and all other handles, sharing memory as views do."""
        if self.handles is None:
            handle.tensor = _apply(handle.steps, self._product())
            return
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(without_autocast(self.hidden.device.type))
            product = self._product()
            computed: dict[int, torch.Tensor] = {}
            for each in list(self.handles):
                x = product
                for step in each.steps:
                    if id(step) not in computed:
                        computed[id(step)] = step(x)
                    x = computed[id(step)]
                each.tensor, each.version = x, x._version
        self._computed, self._copies = True, None

    def _product(self) -> torch.Tensor:
        inputs = self.inputs(thorough=True)
        hidden, weight, bias = self._used = [None if t is None else t.view_as(t) for t in inputs]
        assert hidden is not None and weight is not None
        return F.linear(hidden, weight, bias)

    def _problem(self, states: list[_TensorState], thorough: bool) -> str:
        for state in states:
            problem = state.problem(thorough)
            if problem:
                what = (
                    "the hidden states were"
                    if state is self._states[0]
                    else "the head's weight was"
                )
                return f"{what} {problem} after the forward pass"
        return ""

    # Saving the values

    def copy_weight(self, copies: dict[int, torch.Tensor], step: bool) -> None:
        """Copy the weight if the logits may still be accessed; products share `copies`."""
        if self._computed or self._lost_reason or not self.handles:
            return
        weights = (self.weight, self.bias)
        if step and not any(w is not None and w.requires_grad for w in weights):
            return
        self._optimizer_stepped = self._optimizer_stepped or step
        if self._copies is not None:
            return
        self._lost_reason = self._problem(self._states[1:], thorough=False)
        if not self._lost_reason:
            for w in weights:
                if w is not None and id(w) not in copies:
                    copies[id(w)] = w.detach().clone()
            self._copies = tuple(None if w is None else copies[id(w)] for w in weights)

    def drop_copy(self) -> None:
        """Free the copy: there is a newer forward pass."""
        if self._copies is not None and self._optimizer_stepped:
            self._lost_reason = (
                "an optimizer has stepped and the model has made another forward pass"
            )
        self._copies = None

    # Losses

    def track_loss(
        self, loss: torch.Tensor, steps: tuple[TensorMethod, ...], recompute: Recompute
    ) -> torch.Tensor:
        """`loss`, computed without the logits but still differentiable with respect to them.

        Args:
            loss: a tensor.
            steps: the methods from the product to the loss function's input.
            recompute: the loss as a function of that input.
        """
        self.loss_skipped_logits = True
        if self.handles is None or _under_transform():
            self._untracked = True
            return loss
        if not loss.requires_grad:
            return loss
        record = _LossRecord(self, steps, recompute)
        self._records.add(record)
        out: torch.Tensor = _TrackLoss.apply(loss, record, self.hidden, self.weight, self.bias)
        return out

    def want_gradient(self, handle: Any) -> None:
        """Differentiate losses through the tensor of `handle`.

        Raises:
            RuntimeError: a loss was computed where it could not be recorded.
        """
        records = [] if self._records is None else list(self._records)
        if self._untracked:
            raise RuntimeError(
                "logits: the loss was computed without them under torch.compile or torch.func; for "
                "their gradient use llama_fast.patch(model, loss=False)"
            )
        self._wanted.append(handle)
        for record in records:
            record.product = self


Recompute = Callable[[torch.Tensor], torch.Tensor]


class _LossRecord:
    """How a loss follows from the product; holds the product only while a gradient is wanted."""

    def __init__(
        self, product: HeadProduct, steps: tuple[TensorMethod, ...], recompute: Recompute
    ) -> None:
        self.reference = weakref.ref(product)
        self.product: HeadProduct | None = None
        self.steps, self.recompute = steps, recompute

    def gradients(self, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the loss without logits, of hidden states, of weight and of bias."""
        create = torch.is_grad_enabled()
        product = self.product
        path = [] if product is None else list(self._path(product))
        if product is None or not path:
            return grad, None, None, None
        for handle in path:
            if handle.tensor._version != handle.version:
                raise RuntimeError(
                    "logits: their gradient is wanted, but they were changed in place after the "
                    "loss was computed"
                )
        with torch.enable_grad():
            x = path[0].tensor
            for i in range(len(path[0].steps), len(self.steps)):
                x = self.steps[i](x)
                x = next((h.tensor for h in path if len(h.steps) == i + 1), x)
            loss = self.recompute(x)
            some = [t for t in product._used if t is not None and t.requires_grad]
            result = iter(
                torch.autograd.grad(loss, some, grad, retain_graph=True, create_graph=create)
            )
        inputs = (product.hidden, product.weight, product.bias)
        return None, *(
            next(result).to(t.dtype) if t is not None and t.requires_grad else None for t in inputs
        )

    def _path(self, product: HeadProduct) -> Iterator[Any]:
        """The handles with hooks between the product and the loss, in order."""
        for handle in sorted(product._wanted, key=lambda h: len(h.steps)):
            same = (a is b for a, b in zip(handle.steps, self.steps, strict=False))
            if len(handle.steps) <= len(self.steps) and all(same):
                yield handle


class _TrackLoss(torch.autograd.Function):
    """Identity of the loss, whose backward pass may go through the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: torch.Tensor,
        record: _LossRecord,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.record = record
        return loss.clone()  # models add to it in place, which torch forbids for a view

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        product = ctx.record.reference()
        if product is not None and _is_distributed():  # the weight may be sharded at the end
            _copy_weights(product.weight)
        loss, *inputs = ctx.record.gradients(grad)
        return loss, None, *inputs


def _apply(steps: tuple[TensorMethod, ...], x: torch.Tensor) -> torch.Tensor:
    for step in steps:
        x = step(x)
    return x


def _under_transform() -> bool:
    return in_transform() or in_forward_ad()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _register(product: HeadProduct) -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
    for other in list(_live_products):
        if other.weight is product.weight:
            other.drop_copy()
    _live_products.add(product)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        _copy_weights(None)


def _copy_weights(weight: torch.Tensor | None) -> None:
    """Copy the weights of all live products, or of those with this weight."""
    copies: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for product in list(_live_products):
            if weight is None or product.weight is weight:
                product.copy_weight(copies, step=weight is None)
