"""The interface of an implementation that the benchmarks measure, ours or a baseline.

For a case and its inputs, an implementation builds a function of the input tensors that returns the
output to differentiate, in the shape of ours. Tensors needed once per batch (masks, tables) are
made while building, which is not timed: an advantage for the baseline.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import Case
from .inputs import Inputs

Run = Callable[..., Any]
Builder = Callable[[Case, Inputs], Run | None]

OURS = "llama_fast"


class Unsupported(Exception):
    """An implementation does not support a case; the message says why."""


@dataclass(frozen=True)
class Implementation:
    """One implementation.

    Attributes:
        name: for --baselines.
        what: a few words on it.
        build: op -> builder. A builder returns None for a case that does not concern it, and raises
            `Unsupported` for one that does, but is not supported.
        needs: packages it imports.
        device: "cuda" if it runs only there.
        compiled: whether it uses torch.compile, so that a new process has to compile first.
        overwrites: ops whose input it overwrites unasked.
    """

    name: str
    what: str
    build: dict[str, Builder] = field(repr=False)
    needs: tuple[str, ...] = ()
    device: str = ""
    compiled: bool = False
    overwrites: tuple[str, ...] = ()

    def missing(self, device: str) -> str | None:
        """Why it is not available on `device`, or None."""
        if self.device and self.device != device:
            return f"runs on {self.device} only"
        for package in self.needs:
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                return f"{error.name} is not installed"
            except Exception as error:  # it may be there, and made for another torch
                return f"{package} does not load: {type(error).__name__}: {str(error)[:100]}"
        return None


def optimizer_step(model: torch.nn.Module, loss_of: Run) -> Run:
    """A training step, the same for every side: forward, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = loss_of(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
