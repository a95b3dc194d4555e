"""Times a case: all sides alternate in one process, and results are medians."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .cases import BACKWARD, STEP, Case
from .implementation import OURS, Implementation, Unsupported
from .inputs import Inputs, make_inputs
from .results import Side

WARM = 2.0  # seconds; if the first call takes longer, there is no second warm-up call
# A baseline that takes longer than SLOW seconds and twice the time of the fastest baseline cannot
# change the result, so it gets only FEW rounds.
SLOW, FEW = 2.0, 3
SAMPLE = 2e-3  # seconds; a shorter step is repeated within a sample


class _Computed(torch.autograd.Function):
    """The identity as an operation without cost, whose output is not a leaf.

    It stands for the head that computes the logits, because an op may not overwrite a leaf.
    """

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.detach()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad


class TimedStep:
    """One side of one case, to be called repeatedly.

    Raises:
        Unsupported: the implementation does not support this case. The message is empty if it is
            not meant for the case.
    """

    def __init__(self, case: Case, implementation: Implementation, tensors: Inputs) -> None:
        build = implementation.build.get(case.op)
        run = build(case, tensors) if build else None
        if run is None:
            raise Unsupported("")
        self.case, self.implementation, self._run = case, implementation, run
        self._leaves, self._grads = tensors.leaves, tensors.grads
        self._sets = itertools.cycle(tensors.sets)
        self._first = tensors.sets[0]
        overwrites = case.options.get("inplace") or case.op in implementation.overwrites
        self._untouched = tensors.untouched if overwrites else {}

    @property
    def repeatable(self) -> bool:
        """Whether it needs no `restore` between two calls."""
        return not self._untouched

    def restore(self) -> None:
        """Restore the tensors that a call overwrote; not timed."""
        for name, tensor in self._untouched.items():
            self._first[name].detach().copy_(tensor)

    def __call__(self) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """Run once; return outputs and gradients."""
        given = next(self._sets)
        if self.case.mode != BACKWARD:
            # A training step runs its own backward; the other modes need no graph.
            with torch.set_grad_enabled(self.case.mode == STEP):
                return self._run(*given.values()), ()
        leaves = [given[name] for name in self._leaves]
        if "logits" in given:
            given = given | {"logits": _Computed.apply(given["logits"])}
        out = self._run(*given.values())
        return out, torch.autograd.grad(out, leaves, self._grads)


def _first_tensors(result: tuple[Any, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """The first output and the gradient of the data, which suffice to detect a wrong baseline."""
    out, grads = result
    return [(out if isinstance(out, torch.Tensor) else out[0]).detach(), *grads[:1]]


def difference(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> float:
    """Largest root-mean-square difference of two results, relative to that of the first."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return math.inf
        distance = torch.linalg.vector_norm((x.float() - y.float()).flatten()).item()
        worst = max(worst, distance / max(torch.linalg.vector_norm(x.float()).item(), 1e-30))
    return worst


def seconds(step: Callable[[], Any], repeat: int, device: str) -> float:
    """Mean duration in seconds of `repeat` calls."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    begin = time.perf_counter()
    for _ in range(repeat):
        step()
    synchronize()
    return (time.perf_counter() - begin) / repeat


def one_line(error: BaseException) -> str:
    """An error as one line that fits in a table's footnote."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}".rstrip(": ")


def measure(
    case: Case,
    implementations: list[Implementation],
    rounds: int,
    device: str,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> list[Side]:
    """Time every implementation on `case`.

    Args:
        case: the case to measure.
        implementations: the implementations, ours first; results of the others are compared with
            ours.
        rounds: number of samples of each; a very slow baseline gets fewer (see `SLOW`).
        device: "cpu" or "cuda".
        progress: called with the rounds done (including the warm-up) and the current side.

    Returns:
        One `Side` for each implementation that has the op, in the order of `implementations`.
    """
    torch.compiler.reset()  # else the shapes of the next case would be dynamic
    tensors = make_inputs(case, device)
    sides: list[Side] = []
    steps: list[tuple[Side, TimedStep, float]] = []  # with the seconds of one step
    ours: list[torch.Tensor] | None = None
    for implementation in implementations:
        side = Side(implementation.name)
        progress(0, implementation.name)
        try:
            step = TimedStep(case, implementation, tensors)
            begin = time.perf_counter()
            got = _first_tensors(step())
            side.first_ms = 1e3 * (time.perf_counter() - begin)
            if ours is None:
                ours = [x.clone() for x in got]  # one may be a view of a reused buffer
            side.difference = difference(ours, got)
            del got
            step.restore()
            once = side.first_ms / 1e3
            if implementation.compiled or once < WARM:
                once = seconds(step, 1, device)
                step.restore()
            if step.repeatable:
                side.repeat = max(1, min(1000, math.ceil(SAMPLE / once)))
        except Unsupported as error:
            if not str(error):
                continue
            side.reason = str(error)
        except Exception as error:  # a failing baseline is reported and the run continues
            side.reason = one_line(error)
        else:
            steps.append((side, step, once))
        sides.append(side)
    del ours
    best = min((once for side, _, once in steps if side.implementation != OURS), default=0.0)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for index in range(len(steps)):
                side, step, once = steps[(index + turn) % len(steps)]
                if turn >= FEW and side.implementation != OURS and once > max(SLOW, 2 * best):
                    continue
                progress(turn + 1, side.implementation)
                side.samples_ms.append(1e3 * seconds(step, side.repeat, device))
                step.restore()
    finally:
        gc.enable()
    return sides
