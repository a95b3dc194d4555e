"""Estimate the communication between the processes of a run in a step.

Bytes are computed from shapes; `tests/train/test_plan.py` compares them with torch's communication
calls. Exchanges of single numbers (the gradient norm, the logged loss) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llama_fast.models import LlamaConfig
from llama_fast.train.config import TrainConfig
from llama_fast.train.plan_memory import FLOAT, MeshShape, item_size, tokens_of, weights_of


class Traffic(NamedTuple):
    """One kind of communication along one dimension of the mesh, in a step.

    Attributes:
        dimension: dimension of the mesh: replicate, shard, context or tensor.
        operation: all-reduce, all-gather, reduce-scatter or send.
        size: number of processes that take part.
        payload: bytes per step of the whole tensors that are reduced, gathered, scattered or sent.
        what: description of the tensors.
    """

    dimension: str
    operation: str
    size: int
    payload: int
    what: str

    @property
    def sent(self) -> int:
        """Bytes that each process sends with ring algorithms (Patarasuk & Yuan 2009)."""
        if self.operation == "send":
            return self.payload
        passes = 2 if self.operation == "all-reduce" else 1
        return passes * self.payload * (self.size - 1) // self.size


def traffic(model: LlamaConfig, config: TrainConfig, mesh: MeshShape) -> list[Traffic]:
    """Estimate all communication in an optimizer step, in the order of the mesh's dimensions."""
    everything = _all(model, config, mesh)
    return [traffic for traffic in everything if traffic.size > 1 and traffic.payload > 0]


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
        # A block is gathered for its forward pass and for its backward pass, the root only once.
        yield Traffic("shard", "all-gather", mesh.shards, times * (2 * blocks + root), "weights")
        yield Traffic("shard", "reduce-scatter", mesh.shards, times * (blocks + root), "gradients")
        held = times * FLOAT * weights.held
        yield Traffic("replicate", "all-reduce", mesh.replicate, held, "shards of gradients")
    a, N = item_size(config), tokens_of(config, mesh)
    # Recomputation in the backward pass repeats the communication.
    recomputes = config.activation_checkpointing != "none"
    if mesh.context > 1:
        yield from _ring(model, mesh, a, N, recomputes, times)
    if mesh.tensor > 1:
        yield from _tensor(model, mesh, a, N, recomputes, times)


def _ring(
    model: LlamaConfig, mesh: MeshShape, a: int, N: int, recomputes: bool, times: int
) -> Iterator[Traffic]:
    """Ring attention: keys and values travel once around the ring, and their gradients back."""
    kv = 2 * N * (model.num_kv_heads // mesh.tensor) * model.head_dim
    steps, size = mesh.context - 1, mesh.context
    of_keys = (2 + recomputes) * steps * kv * a
    of_gradients = size * kv * FLOAT
    layers = times * model.num_layers
    yield Traffic("context", "send", size, layers * of_keys, "keys and values")
    yield Traffic("context", "send", size, layers * of_gradients, "their gradients")


def _tensor(
    model: LlamaConfig, mesh: MeshShape, a: int, N: int, recomputes: bool, times: int
) -> Iterator[Traffic]:
    """Tensor parallelism: all-reduces of (N,E) over heads, width and vocabulary.

    The few numbers per token that the loss exchanges are left out.
    """
    hidden, layers = N * model.embed_dim, model.num_layers
    # After attention and the feed-forward part; recomputation ends before the second.
    forward = a * (2 + recomputes)
    # Gradients of the inputs of q, k and v, float32 from the norm, and of gate and up.
    backward = 3 * FLOAT + 2 * a
    ends = 2 * FLOAT  # the embedding's output, and the gradient of the head's input
    payload = times * hidden * (layers * (forward + backward) + ends)
    yield Traffic("tensor", "all-reduce", mesh.tensor, payload, "activations and their gradients")
