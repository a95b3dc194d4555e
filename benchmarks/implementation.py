"""What an implementation has to offer to take part in the benchmarks, ours as any other.

An implementation builds, for a case and its problem, a function of the problem's tensors that
returns what is then differentiated, in the shape that ours returns. What can be made once a batch
(a mask, a table) is made while building, and is not timed: to the baseline's advantage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import Case
from .problem import Problem

Run = Callable[..., Any]
Builder = Callable[[Case, Problem], Run | None]

OURS = "llama_fast"


class Unsupported(Exception):
    """An implementation cannot do a case that is its own; the message says why."""


@dataclass(frozen=True)
class Implementation:
    """One implementation.

    Attributes:
        name: for --baselines.
        what: in a few words.
        build: op -> builder. A builder returns None for a case that is none of its business, and
            raises `Unsupported` for one that should be, but does not work.
        needs: packages it imports.
        device: "cuda" for one that runs nowhere else.
        compiled: goes through torch.compile, so that a new process has to compile first.
        overwrites: ops whose input it destroys without being asked to.
    """

    name: str
    what: str
    build: dict[str, Builder] = field(repr=False)
    needs: tuple[str, ...] = ()
    device: str = ""
    compiled: bool = False
    overwrites: tuple[str, ...] = ()

    def missing(self, device: str) -> str | None:
        """Why it cannot take part on `device`, or None."""
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
    """The same step for every side of the training: forward, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = loss_of(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
