"""What the processes of a run send each other in a step.

Bytes follow from shapes: `tests/train/test_plan.py` holds them to what torch is asked to send. The
exchange of single numbers (the norm of the gradient, the loss that is shown) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llama_fast.models import LlamaConfig
from llama_fast.train.config import TrainConfig
from llama_fast.train.plan_memory import FLOAT, MeshShape, item_size, tokens_of, weights_of


class Traffic(NamedTuple):
    """One kind of exchange along one dimension of the mesh, in a step.

    Attributes:
        dimension: of the mesh: replicate, shard, context or tensor.
        operation: all-reduce, all-gather, reduce-scatter or send.
        size: how many processes take part.
        payload: bytes, summed over the step: of the whole tensor that is reduced, gathered or
            scattered, or that a process sends.
        what: in words.
    """

    dimension: str
    operation: str
    size: int
    payload: int
    what: str

    @property
    def sent(self) -> int:
        """Bytes that each process sends, on a ring (Patarasuk & Yuan 2009, all-reduce)."""
        if self.operation == "send":
            return self.payload
        passes = 2 if self.operation == "all-reduce" else 1
        return passes * self.payload * (self.size - 1) // self.size


def traffic(model: LlamaConfig, config: TrainConfig, mesh: MeshShape) -> list[Traffic]:
    """Everything that is sent in an optimizer step, by all of its micro-batches."""
    return [
        found for found in _all(model, config, mesh) if found.size > 1 and found.payload > 0
    ]  # fmt: skip


def _all(model: LlamaConfig, config: TrainConfig, mesh: MeshShape) -> Iterator[Traffic]:
    weights, layers, times = (
        weights_of(model, mesh),
        model.num_layers,
        config.optimizer.gradient_accumulation_steps,
    )
    if mesh.uses_ddp:
        gradients = FLOAT * weights.held
        yield Traffic("replicate", "all-reduce", mesh.averaged, gradients, "gradients, DDP")
    if mesh.uses_fsdp:
        blocks, root = FLOAT * layers * weights.block, FLOAT * weights.root
        # A block is gathered for its forward and again for its backward pass; the rest stays.
        yield Traffic("shard", "all-gather", mesh.shards, times * (2 * blocks + root), "weights")
        yield Traffic("shard", "reduce-scatter", mesh.shards, times * (blocks + root), "gradients")
        held = times * FLOAT * weights.held
        yield Traffic("replicate", "all-reduce", mesh.replicate, held, "shards of gradients")
    a, N = item_size(config), tokens_of(config, mesh)
    # What is computed again in the backward pass is exchanged again.
    again = config.activation_checkpointing != "none"
    if mesh.context > 1:
        yield from _ring(model, mesh, a, N, again, times)
    if mesh.tensor > 1:
        yield from _tensor(model, mesh, a, N, again, times)


def _ring(
    model: LlamaConfig, mesh: MeshShape, a: int, N: int, again: bool, times: int
) -> Iterator[Traffic]:
    """Keys and values go once around, less the last step; their gradients go home."""
    kv = 2 * N * (model.num_kv_heads // mesh.tensor) * model.head_dim
    steps, size = mesh.context - 1, mesh.context
    of_keys = (2 + again) * steps * kv * a
    of_gradients = size * kv * FLOAT
    layers = times * model.num_layers
    yield Traffic("context", "send", size, layers * of_keys, "keys and values")
    yield Traffic("context", "send", size, layers * of_gradients, "their gradients")


def _tensor(
    model: LlamaConfig, mesh: MeshShape, a: int, N: int, again: bool, times: int
) -> Iterator[Traffic]:
    """Sums over the parts of heads, width and vocabulary, each of (N,E).

    Left out: the few numbers a token that the loss exchanges.
    """
    hidden, layers = N * model.embed_dim, model.num_layers
    # After attention and the feed-forward part; what is computed again ends before the second.
    forward = a * (2 + again)
    # In front of q, k and v, whose input is the float32 of the norm, and of gate and up.
    backward = 3 * FLOAT + 2 * a
    ends = 2 * FLOAT  # what the embedding found; the gradient of the head's input
    payload = times * hidden * (layers * (forward + backward) + ends)
    yield Traffic("tensor", "all-reduce", mesh.tensor, payload, "activations and their gradients")
