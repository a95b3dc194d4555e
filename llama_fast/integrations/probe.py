"""Runs a copy of a module beside a formula, in evaluation and in training, and compares them.

Training can differ where evaluation does not: dropout and noise, which show in the state of the
random generators, and gradients that are stopped or scaled.
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

# Relative. Modules that compute in float32 internally differ from float64 by less.
TOLERANCE = 1e-5
DROPOUT_P = 0.5  # high enough to change the output of any input

Formula = Callable[[Any, torch.Tensor], Any]


class Probe:
    """A copy of a module in float64 on the CPU, with random weights and without hooks.

    Args:
        module: the module to copy.
        x: its input, float64.
        excluded: names of children that the formula calls as the module does. They always run in
            evaluation mode.

    Raises:
        Exception: whatever the module raises for this input.
    """

    def __init__(self, module: nn.Module, x: torch.Tensor, excluded: tuple[str, ...] = ()) -> None:
        self._x, self._excluded = x.clone().requires_grad_(), excluded
        self.module = _in_float64(module)
        for name, part in self.module.named_modules():
            if isinstance(part, DropoutModule) and name.split(".")[0] not in excluded:
                part.p = DROPOUT_P
        self._module_results = {training: self._run(_call, training) for training in (False, True)}

    @property
    def gives_a_tensor(self) -> bool:
        """Whether the module returns a tensor in evaluation and in training."""
        return all(isinstance(out, torch.Tensor) for out, _ in self._module_results.values())

    def agrees(self, formula: Formula, training: bool) -> bool:
        """Whether ``formula(copy, x)`` equals the module's output and leaves the same random state.

        In training, also whether the gradients of the input and of all weights are the same.
        """
        actual, random_state = self._module_results[training]
        expected, ours = self._run(formula, training)
        if random_state != ours or not close(actual, expected):
            return False
        if not training:
            return True
        inputs = (self._x, *self.module.parameters())
        if not actual.requires_grad:
            return False
        direction = normal(*actual.shape, seed=2)
        return all(  # one at a time: each is as large as a weight
            close(*(_gradient(out, t, direction) for out in (actual, expected))) for t in inputs
        )

    def _run(self, formula: Formula, training: bool) -> tuple[Any, Any]:
        self.module.train(training)
        for name in self._excluded:
            getattr(self.module, name).eval()
        with fixed_random_state() as random_state, torch.set_grad_enabled(training):
            return formula(self.module, self._x), random_state()


def close(actual: Any, expected: Any) -> bool:
    """Whether two tensors have one shape and agree, relative to the largest number."""
    if actual is None or expected is None:
        return actual is expected
    if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
        return False
    return bool((actual.double() - expected).abs().max() <= TOLERANCE * expected.abs().max())


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal float64 numbers, the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@contextlib.contextmanager
def fixed_random_state() -> Iterator[Callable[[], Any]]:
    """Seed all random generators inside the block; yields a function that returns their state."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()

    def current_state() -> Any:
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
            yield current_state
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def _call(module: nn.Module, x: torch.Tensor) -> Any:
    return module(x)


def _gradient(out: torch.Tensor, t: torch.Tensor, direction: torch.Tensor) -> Any:
    along = direction.to(out.dtype)
    return torch.autograd.grad(out, t, along, retain_graph=True, allow_unused=True)[0]


def _in_float64(module: nn.Module) -> Any:
    memo: dict[int, Any] = {}
    for parameter in module.parameters():  # the copy gets new ones, whatever the dtype and device
        memo[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=torch.float64))
    probe = copy.deepcopy(module, memo)
    for part in probe.modules():
        clear_hooks(part)
        part.__dict__.pop("forward", None)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        parameter.data.normal_(generator=generator).mul_(0.3).add_(0.7 * (parameter.dim() == 1))
    return probe.double().cpu()
