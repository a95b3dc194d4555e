"""What a head would give, computed when somebody looks, of the tensors as they were.

Between the forward pass and a look the head's weight may change: the optimizer steps, FSDP shards
it again. Before an optimizer steps, and where weights may be sharded before a backward pass, the
weight is copied for logits that somebody still holds; the next forward pass drops the copy. What
changes it in any other way is noticed, and looking is then an error.

A loss made without the logits can still be differentiated by them: once somebody has put a hook on
the logits or wants their gradient, the backward pass of the loss goes through them.
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

_SAMPLE = 4096  # about so many numbers of a tensor tell whether it was written to past its version
_PLAIN = (torch.Tensor, nn.Parameter)
_living: weakref.WeakSet[HeadProduct] = weakref.WeakSet()
_hooks: list[Any] = []


class Step(NamedTuple):
    """A method of tensors and its arguments: one thing that a model does to its logits."""

    name: str
    arguments: tuple[Any, ...]

    def __call__(self, x: torch.Tensor) -> Any:
        """What the method gives."""
        return getattr(x, self.name)(*self.arguments)


class _State:
    """A tensor and what tells whether it is as it was."""

    def __init__(self, tensor: torch.Tensor) -> None:
        eager = not torch.compiler.is_compiling()
        plain = type(tensor) in _PLAIN and tensor.device.type != "meta"
        if eager and (in_transform() or has_dispatch_mode()):
            plain = False
        self.tensor = tensor
        self.version = tensor._version if eager and not tensor.is_inference() else None
        self.stored = plain  # wrappers of torch.func have no memory of their own
        self.sample = _sample(tensor) if plain else None

    def problem(self, thorough: bool) -> str:
        """What happened to the tensor; "" if nothing. A thorough look waits for a GPU."""
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
    each = round(_SAMPLE ** (1 / max(x.dim(), 1)))
    return x.detach()[tuple(slice(None, None, max(1, n // each)) for n in x.shape)].clone()


class _OfItsTime(torch.autograd.Function):
    """The numbers of a copy, the gradient of the parameter that was copied."""

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
        head: for its weight (V,E) and bias (V,) of now.
        dtype: of the product.

    Attributes:
        hidden: (..., E).
        handles: what stands for the logits, or for what was made of them, and is still held by
            somebody: has `steps` from the product on, and gets `tensor` when that is computed. None
            where a compiler traces.
        without: whether a loss was made without the logits.
    """

    def __init__(self, hidden: torch.Tensor, head: nn.Linear, dtype: torch.dtype) -> None:
        self.hidden, self.weight, self.bias = hidden, head.weight, head.bias
        self.dtype = dtype
        self.without = False
        self.handles: weakref.WeakSet[Any] | None = None
        self._was = [_State(t) for t in (hidden, self.weight, self.bias) if t is not None]
        self._copies: tuple[torch.Tensor | None, ...] | None = None
        self._stepped, self._computed, self._lost, self._unwatched = False, False, "", False
        self._used: list[torch.Tensor | None] = []  # views: a tied weight is part of hidden, too
        self._watches: Any = None
        self._wanted: list[Any] = []  # handles with hooks
        if not torch.compiler.is_compiling():
            self.handles, self._watches = weakref.WeakSet(), weakref.WeakSet()
            _begin(self)

    @property
    def requires_grad(self) -> bool:
        """Whether the logits do."""
        return any(state.tensor.requires_grad for state in self._was)

    def inputs(self, thorough: bool = False) -> list[torch.Tensor | None]:
        """Hidden states, weight and bias, the numbers of the forward pass, in the product's dtype.

        Raises:
            RuntimeError: they are no longer available.
        """
        checked = self._was if self._copies is None else self._was[:1]
        problem = self._lost or self._problem(checked, thorough)
        if problem:
            raise RuntimeError(
                f"logits: they were to be computed when looked at, but {problem}. Look at them "
                "before that, or keep them with llama_fast.patch(model, loss=False)"
            )
        weights: tuple[torch.Tensor | None, ...] = (self.weight, self.bias)
        if self._copies is not None:
            weights = tuple(
                None if w is None or copy is None else _OfItsTime.apply(w, copy)
                for w, copy in zip(weights, self._copies, strict=True)
            )
        return [None if t is None else t.to(self.dtype) for t in (self.hidden, *weights)]

    def compute(self, handle: Any) -> None:
        """Give `handle`, and all others, their tensors, views of each other as they should be."""
        if self.handles is None:
            handle.tensor = _after(handle.steps, self._product())
            return
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if torch.amp.is_autocast_available(self.hidden.device.type):
                stack.enter_context(torch.autocast(self.hidden.device.type, enabled=False))
            product = self._product()
            made: dict[int, torch.Tensor] = {}
            for each in list(self.handles):
                x = product
                for step in each.steps:
                    if id(step) not in made:
                        made[id(step)] = step(x)
                    x = made[id(step)]
                each.tensor, each.version = x, x._version
        self._computed, self._copies = True, None

    def _product(self) -> torch.Tensor:
        inputs = self.inputs(thorough=True)
        hidden, weight, bias = self._used = [None if t is None else t.view_as(t) for t in inputs]
        assert hidden is not None and weight is not None
        return F.linear(hidden, weight, bias)

    def _problem(self, states: list[_State], thorough: bool) -> str:
        for state in states:
            problem = state.problem(thorough)
            if problem:
                what = (
                    "the hidden states were" if state is self._was[0] else "the head's weight was"
                )
                return f"{what} {problem} after the forward pass"
        return ""

    # Keeping the numbers

    def keep(self, copies: dict[int, torch.Tensor], step: bool) -> None:
        """Copy the weight if somebody may look yet; `copies` is shared by all who do so now."""
        if self._computed or self._lost or not self.handles:
            return
        weights = (self.weight, self.bias)
        if step and not any(w is not None and w.requires_grad for w in weights):
            return
        self._stepped = self._stepped or step
        if self._copies is not None:
            return
        self._lost = self._problem(self._was[1:], thorough=False)
        if not self._lost:
            for w in weights:
                if w is not None and id(w) not in copies:
                    copies[id(w)] = w.detach().clone()
            self._copies = tuple(None if w is None else copies[id(w)] for w in weights)

    def drop(self) -> None:
        """Give the memory of the copy back: there is a newer forward pass."""
        if self._copies is not None and self._stepped:
            self._lost = "an optimizer has stepped and the model has made another forward pass"
        self._copies = None

    # Losses

    def watched(self, loss: torch.Tensor, steps: tuple[Step, ...], remake: Remake) -> torch.Tensor:
        """`loss`, made without the logits, which can be differentiated by them yet.

        Args:
            loss: a tensor.
            steps: from the product to what the loss is of.
            remake: gives the loss, of the latter's tensor.
        """
        self.without = True
        if self.handles is None or _transformed():
            self._unwatched = True
            return loss
        if not loss.requires_grad:
            return loss
        watch = _Watch(self, steps, remake)
        self._watches.add(watch)
        out: torch.Tensor = _Watched.apply(loss, watch, self.hidden, self.weight, self.bias)
        return out

    def want_gradient(self, handle: Any) -> None:
        """Have losses be differentiated through the tensor of `handle`.

        Raises:
            RuntimeError: a loss was made where nobody could watch.
        """
        watches = [] if self._watches is None else list(self._watches)
        if self._unwatched:
            raise RuntimeError(
                "logits: the loss was made without them under torch.compile or torch.func; for "
                "their gradient use llama_fast.patch(model, loss=False)"
            )
        self._wanted.append(handle)
        for watch in watches:
            watch.product = self


Remake = Callable[[torch.Tensor], torch.Tensor]


class _Watch:
    """A loss: how it comes of the product. Holds that only where somebody wants the gradient."""

    def __init__(self, product: HeadProduct, steps: tuple[Step, ...], remake: Remake) -> None:
        self.reference = weakref.ref(product)
        self.product: HeadProduct | None = None
        self.steps, self.remake = steps, remake

    def gradients(self, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of the loss that was made and of hidden states, weight and bias."""
        create = torch.is_grad_enabled()
        product = self.product
        path = [] if product is None else list(self._path(product))
        if product is None or not path:
            return grad, None, None, None
        for handle in path:
            if handle.tensor._version != handle.version:
                raise RuntimeError(
                    "logits: their gradient is wanted, but they were changed in place after the "
                    "loss was made of them"
                )
        with torch.enable_grad():
            x = path[0].tensor
            for i in range(len(path[0].steps), len(self.steps)):
                x = self.steps[i](x)
                x = next((h.tensor for h in path if len(h.steps) == i + 1), x)
            loss = self.remake(x)
            some = [t for t in product._used if t is not None and t.requires_grad]
            found = iter(
                torch.autograd.grad(loss, some, grad, retain_graph=True, create_graph=create)
            )
        inputs = (product.hidden, product.weight, product.bias)
        return None, *(
            next(found).to(t.dtype) if t is not None and t.requires_grad else None for t in inputs
        )

    def _path(self, product: HeadProduct) -> Iterator[Any]:
        """The handles with hooks that lie between the product and the loss, in order."""
        for handle in sorted(product._wanted, key=lambda h: len(h.steps)):
            same = (a is b for a, b in zip(handle.steps, self.steps, strict=False))
            if len(handle.steps) <= len(self.steps) and all(same):
                yield handle


class _Watched(torch.autograd.Function):
    """The loss; its inputs are there for a backward pass through the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: torch.Tensor,
        watch: _Watch,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.watch = watch
        return loss.clone()  # models add to it in place, which torch forbids for a view

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        product = ctx.watch.reference()
        if product is not None and _is_distributed():  # the weight may be sharded at the end
            _keep_all(product.weight)
        loss, *inputs = ctx.watch.gradients(grad)
        return loss, None, *inputs


def _after(steps: tuple[Step, ...], x: torch.Tensor) -> torch.Tensor:
    for step in steps:
        x = step(x)
    return x


def _transformed() -> bool:
    return in_transform() or in_forward_ad()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _begin(product: HeadProduct) -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
    for other in list(_living):
        if other.weight is product.weight:
            other.drop()
    _living.add(product)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        _keep_all(None)


def _keep_all(weight: torch.Tensor | None) -> None:
    """Have all products, or those with a weight, keep it."""
    copies: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for product in list(_living):
            if weight is None or product.weight is weight:
                product.keep(copies, step=weight is None)
