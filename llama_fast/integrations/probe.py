"""Copies of modules, run beside a formula in evaluation and in training, to see if they agree.

What only training shows counts as much as the values: dropout and noise, told by what is drawn from
the random generators, and gradients that are stopped or scaled on the way.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from llama_fast._torch_internals import DropoutModule, clear_hooks

# What a module computes in float32 on the way is this far from float64 at most.
AGREEMENT = 1e-5
DROPPED = 0.5  # often enough to be seen in any input

Formula = Callable[[Any, torch.Tensor], Any]


class Probe:
    """A copy of a module in float64 on the CPU, with random weights and without hooks.

    Args:
        module: of which; stays as it is.
        x: its input.
        apart: names of children that a formula calls as the module does: what they are is of no
            interest, and they are run as in evaluation.

    Raises:
        Exception: whatever the module says to such input.
    """

    def __init__(self, module: nn.Module, x: torch.Tensor, apart: tuple[str, ...] = ()) -> None:
        self._x, self._apart = x.clone().requires_grad_(), apart
        self.module = _in_float64(module)
        for name, part in self.module.named_modules():
            if isinstance(part, DropoutModule) and name.split(".")[0] not in apart:
                part.p = DROPPED
        self._theirs = {training: self._run(_call, training) for training in (False, True)}

    @property
    def gives_a_tensor(self) -> bool:
        """Whether the module does."""
        return all(isinstance(out, torch.Tensor) for out, _ in self._theirs.values())

    def agrees(self, formula: Formula, training: bool) -> bool:
        """Whether `formula` (copy, x) gives what the module gives, and draws what it draws.

        In training also whether gradients of the input and of all weights are the same.
        """
        got, drawn = self._theirs[training]
        want, ours = self._run(formula, training)
        if drawn != ours or not close(got, want):
            return False
        if not training:
            return True
        inputs = (self._x, *self.module.parameters())
        if not got.requires_grad:
            return False
        direction = normal(*got.shape, seed=2)
        return all(  # one by one: each is as large as a weight
            close(*(_gradient(out, t, direction) for out in (got, want))) for t in inputs
        )

    def _run(self, formula: Formula, training: bool) -> tuple[Any, Any]:
        self.module.train(training)
        for name in self._apart:
            getattr(self.module, name).eval()
        with same_draws() as drawn, torch.set_grad_enabled(training):
            return formula(self.module, self._x), drawn()


def close(got: Any, want: Any) -> bool:
    """Whether two tensors of one shape agree, relative to the largest number."""
    if got is None or want is None:
        return got is want
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return False
    return bool((got.double() - want).abs().max() <= AGREEMENT * want.abs().max())


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Numbers in float64 that are the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@contextlib.contextmanager
def same_draws() -> Iterator[Callable[[], Any]]:
    """Random generators in one state; gives a function of what they are in now. Then as before."""
    numpy = sys.modules.get("numpy")
    python, numpys = random.getstate(), numpy and numpy.random.get_state()

    def now() -> Any:
        array = numpy and numpy.random.get_state()
        return (
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            array and (array[1].tobytes(), *array[2:]),
        )

    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            yield now
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)


def _call(module: nn.Module, x: torch.Tensor) -> Any:
    return module(x)


def _gradient(out: torch.Tensor, t: torch.Tensor, direction: torch.Tensor) -> Any:
    along = direction.to(out.dtype)
    return torch.autograd.grad(out, t, along, retain_graph=True, allow_unused=True)[0]


def _in_float64(module: nn.Module) -> Any:
    memo: dict[int, Any] = {}
    for parameter in module.parameters():  # the copy gets its own, whatever these hold or where
        memo[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=torch.float64))
    probe = copy.deepcopy(module, memo)
    for part in probe.modules():
        clear_hooks(part)
        part.__dict__.pop("forward", None)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        parameter.data.normal_(generator=generator).mul_(0.3).add_(0.7 * (parameter.dim() == 1))
    return probe.double().cpu()
