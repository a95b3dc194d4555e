"""Every implementation that a benchmark compares, behind one interface.

A peer turns the tensors of a case into the output that is then differentiated. Ours comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import llama_fast


@dataclass(frozen=True)
class Peer:
    """One implementation of one op."""

    name: str
    op: str
    run: Callable[..., torch.Tensor]


def _attention_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def _cross_entropy_in_place(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # Logits are computed in practice; a view of no cost stands for that.
    return llama_fast.cross_entropy(logits, target, inplace=True)


PEERS = (
    Peer("llama_fast", "attention", lambda q, k, v: llama_fast.attention(q, k, v, causal=True)),
    Peer("torch", "attention", _attention_torch),
    Peer("llama_fast", "cross_entropy", llama_fast.cross_entropy),
    Peer("llama_fast in place", "cross_entropy", _cross_entropy_in_place),
    Peer("torch", "cross_entropy", F.cross_entropy),
    Peer("torch.compile", "cross_entropy", torch.compile(F.cross_entropy)),
)


def peers(op: str) -> list[Peer]:
    """The implementations of `op`, ours first."""
    return [peer for peer in PEERS if peer.op == op]
