"""Everyone who takes part, behind one interface.

A peer builds, for a case and its problem, a function of the problem's tensors that returns what is
then differentiated, in the shape that ours returns. What can be made once per batch (a mask, a
table) is made while building, and is not timed: to the rival's advantage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import llama_fast

from .cases import DTYPES, Case
from .problem import Problem

Run = Callable[..., Any]
Builder = Callable[[Case, Problem], Run | None]

OURS = "llama_fast"


class Unsupported(Exception):
    """A peer cannot do a case that is its own; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        name: for --peers.
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


def _attention(case: Case, problem: Problem) -> Run:
    options: dict[str, Any] = {
        "causal": case.options["causal"],
        "window": case.options.get("window"),
        "bias": problem.extra.get("bias"),
        "key_padding_mask": problem.extra.get("key_padding_mask"),
        "cu_seqlens_q": problem.extra.get("cu_seqlens"),
    }
    return lambda q, k, v: llama_fast.attention(q, k, v, **options)


def _attention_decode(case: Case, problem: Problem) -> Run:
    extra = problem.extra
    return lambda q, k_cache, v_cache, k, v: llama_fast.attention_decode(
        q, k_cache, v_cache, k=k, v=v, **extra
    )


def _cross_entropy(case: Case, problem: Problem) -> Run:
    inplace = bool(case.options.get("inplace"))
    return lambda logits, target: llama_fast.cross_entropy(logits, target, inplace=inplace)


def _rms_norm(case: Case, problem: Problem) -> Run:
    return lambda input, weight, residual=None: llama_fast.rms_norm(
        input, weight, 1e-5, residual=residual
    )


def _rope(case: Case, problem: Problem) -> Run:
    cos, sin = problem.extra["cos"], problem.extra["sin"]
    return lambda q, k: llama_fast.rope(q, k, cos, sin)


def _training(case: Case, problem: Problem) -> Run:
    s = case.sizes
    config = llama_fast.models.LlamaConfig(
        s["V"], s["E"], s["H"], s["L"], ffn_dim=s["F"], max_seq_len=s["S"]
    )
    device = problem.sets[0]["tokens"].device
    model = llama_fast.LLaMA(config).to(device, DTYPES[case.dtype]).train()
    return optimizer_step(model, model.loss)


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


_LLAMA_FAST = Peer(
    OURS,
    "this package, through its public functions",
    {
        "attention": _attention,
        "attention_decode": _attention_decode,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": lambda case, problem: llama_fast.linear_cross_entropy,
        "rms_norm": _rms_norm,
        "rope": _rope,
        "swiglu": lambda case, problem: llama_fast.swiglu,
        "llama_training": _training,
    },
)


def all_peers() -> dict[str, Peer]:
    """Every peer by name, ours first."""
    from . import peers_cuda, peers_torch  # (they import this module)

    return {peer.name: peer for peer in (_LLAMA_FAST, *peers_torch.PEERS, *peers_cuda.PEERS)}


def choose(names: Sequence[str], device: str) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can take part, ours always among them, and why the others cannot.

    Args:
        names: of peers; empty for all.
        device: "cpu" or "cuda".

    Raises:
        ValueError: a name that no peer has.
    """
    known = all_peers()
    for name in names:
        if name not in known:
            raise ValueError(f"--peers: expected names among {', '.join(known)}; got {name!r}")
    present, missing = [], {}
    for peer in known.values():
        if names and peer.name not in (OURS, *names):
            continue
        reason = peer.missing(device)
        if reason is None:
            present.append(peer)
        elif names or peer.device in ("", device):  # a CPU is not told of every GPU library
            missing[peer.name] = reason
    return present, missing
