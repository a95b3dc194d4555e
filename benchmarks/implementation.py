"""The interface of an implementation that the benchmarks measure, ours or a baseline.

For a case and its inputs, an implementation builds a function of the input tensors that returns the
output to differentiate, in the shape of our output. Tensors that are needed once per batch (masks,
tables) are created while building, which is not timed; this is an advantage for baselines.
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
    """An implementation of ops.

    Attributes:
        name: name for --baselines.
        what: a short description.
        build: op -> builder. A builder returns None for a case that it is not meant for, and raises
            `Unsupported` for any other case that it cannot compute.
        needs: packages that it imports.
        device: "cuda" if it runs only on GPUs.
        compiled: whether it uses torch.compile, so that a new process must compile first.
        overwrites: ops whose input it always overwrites.
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
            except Exception as error:  # it may be installed for another version of torch
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
