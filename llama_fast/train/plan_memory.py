"""Estimate the memory of one process in a training step.

The peak is at one of these points of a step: the end of the forward pass, the first or the last
block of the backward pass, the embedding's gradient, or the optimizer's step.
Weights, gradients, moments and saved activations are computed from shapes; working memory is that
of the largest operation. Rounding by the allocator and memory of CUDA and NCCL are not included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llama_fast.models import LlamaConfig
from llama_fast.ops.chunked import WIDEN_ELEMENTS, rows_per_chunk
from llama_fast.train.config import TrainConfig

FLOAT = 4  # bytes of a float32: weights, gradients and moments
# Rows of logits in memory at once in the GPU's fused loss; see kernels/linear_cross_entropy.py.
CHUNK_ROWS = 4096
# Bytes of logits in the CPU's fused loss; see csrc/cpu/linear_cross_entropy_plan.h.
CPU_MIN_LOGITS, CPU_MAX_LOGITS = 16 << 20, 512 << 20


class MeshShape(NamedTuple):
    """Sizes of the device mesh: `parallel` of a configuration with `replicate` resolved."""

    replicate: int
    shard: int
    context: int
    tensor: int

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.replicate * self.shard * self.context * self.tensor

    @property
    def data_world_size(self) -> int:
        """Number of processes with different sequences."""
        return self.replicate * self.shard

    @property
    def averaged(self) -> int:
        """Number of processes whose gradients are averaged."""
        return self.data_world_size * self.context

    @property
    def uses_fsdp(self) -> bool:
        """Whether FSDP shards the weights; see `llama_fast.train.parallel.ParallelContext`."""
        return self.shard > 1 or (self.tensor > 1 and self.averaged > 1)

    @property
    def uses_ddp(self) -> bool:
        """Whether DDP replicates the weights on several processes."""
        return self.averaged > 1 and not self.uses_fsdp

    @property
    def shards(self) -> int:
        """Number of shards that FSDP splits each weight into."""
        return self.shard * self.context if self.uses_fsdp else 1


class WeightCounts(NamedTuple):
    """Number of weights of one process.

    Attributes:
        block: weights of one block after FSDP has gathered it, including padding of uneven shards.
        root: weights outside of blocks (embedding, last norm, head), after FSDP has gathered them.
        held: weights that the process stores.
    """

    block: int
    root: int
    held: int


def weights_of(model: LlamaConfig, mesh: MeshShape) -> WeightCounts:
    """Number of weights of rank 0, whose shards are the largest if they are uneven."""

    def padded(shapes: Iterator[tuple[int, int]]) -> int:
        return sum(-(-rows // mesh.shards) * columns for rows, columns in shapes)

    block, root = padded(_block_shapes(model, mesh)), padded(_root_shapes(model, mesh))
    held = model.num_layers * block + root
    return WeightCounts(block * mesh.shards, root * mesh.shards, held)


def _block_shapes(model: LlamaConfig, mesh: MeshShape) -> Iterator[tuple[int, int]]:
    E, D, t = model.embed_dim, model.head_dim, mesh.tensor
    heads, kv, width = model.num_heads * D // t, model.num_kv_heads * D // t, model.ffn_dim // t
    yield from ((heads, E), (kv, E), (kv, E), (E, heads), (width, E), (width, E), (E, width))
    yield from ((E, 1), (E, 1))  # norms are replicated by tensor parallelism


def _root_shapes(model: LlamaConfig, mesh: MeshShape) -> Iterator[tuple[int, int]]:
    rows, E = model.vocab_size // mesh.tensor, model.embed_dim
    yield from ((rows, E),) * (1 if model.tie_embeddings else 2)
    yield E, 1


def item_size(config: TrainConfig) -> int:
    """Bytes of an element in a matrix product."""
    return FLOAT if config.precision == "float32" else 2


def tokens_of(config: TrainConfig, mesh: MeshShape) -> int:
    """Number of tokens in a micro-batch on one process."""
    return -(-config.data.micro_batch_size * config.data.seq_len // mesh.context)


class BlockMemory(NamedTuple):
    """Bytes of the activations of a block.

    Attributes:
        kept: bytes stored from the forward to the backward pass.
        recomputed: bytes recomputed and stored during the backward pass.
        working: additional bytes at the peak of the backward pass.
    """

    kept: int
    recomputed: int
    working: int


def block_bytes(model: LlamaConfig, config: TrainConfig, mesh: MeshShape) -> BlockMemory:
    """Memory of the activations of a block.

    The residual stream and its gradient are float32; operands of matrix products are in the
    precision of the run. Without checkpointing these are stored: the inputs of both norms, their
    outputs (the
    first is cast for each of the three projections), q, k, v, the output of attention with two
    log-sum-exps per head, and gate, up and their product.
    """
    a, t, N = item_size(config), mesh.tensor, tokens_of(config, mesh)
    E, F = model.embed_dim, model.ffn_dim // t
    heads, kv = model.num_heads * model.head_dim // t, model.num_kv_heads * model.head_dim // t
    logs = 2 * FLOAT * model.num_heads // t
    normed = E if config.precision == "float32" else 3 * E
    attention = a * (2 * heads + 2 * kv) + logs
    everything = 2 * FLOAT * (E + 1) + a * (normed + E + 3 * F) + attention
    working = FLOAT * E + a * (E + 3 * F)  # gradients of x, of gate and up and their product
    if config.activation_checkpointing == "none":
        return BlockMemory(N * everything, 0, N * working)
    kept = FLOAT * E  # the input
    if config.activation_checkpointing == "selective":  # and the products, and attention
        products = a * (heads + 2 * kv + 2 * E + 2 * F)
        kept += products + a * heads + logs
        recomputed = everything - attention - a * 2 * F + a * (heads + 2 * kv)
        return BlockMemory(N * kept, N * recomputed, N * working)
    return BlockMemory(N * kept, N * everything, N * working)


class LossMemory(NamedTuple):
    """Bytes of the fused loss.

    Attributes:
        working: bytes in use while it runs.
        kept: bytes of its input and of the gradients that it computes in the forward pass, stored
            until the backward pass uses them.
    """

    working: int
    kept: int


def loss_bytes(model: LlamaConfig, config: TrainConfig, mesh: MeshShape, device: str) -> LossMemory:
    """Memory of the fused loss: a chunk of logits, and gradients of hidden states and head."""
    a, N = item_size(config), tokens_of(config, mesh)
    E, V = model.embed_dim, model.vocab_size // mesh.tensor
    # float16 gradients are float32 here: small ones would round to zero before they are scaled.
    g = FLOAT if config.precision == "float16" else a
    hidden = FLOAT * N * (E + 1) + a * N * E * (
        1 if a == FLOAT else 2
    )  # input of the norm, and its cast
    if mesh.tensor > 1:  # the chunked implementation, in float32
        rows = min(N, rows_per_chunk(V, FLOAT))
        working = FLOAT * (rows * (V + 3 * E) + (WIDEN_ELEMENTS if a < FLOAT else 0))
        return LossMemory(working, hidden + FLOAT * (N * E + V * E))
    kept = hidden + g * (N * E + V * E)
    if device == "cpu":
        logits_of_torch = 3 * N * V * a
        working = min(max(CPU_MIN_LOGITS, logits_of_torch // 11), CPU_MAX_LOGITS)
        return LossMemory(working, kept)
    rows = min(N, CHUNK_ROWS)
    # The head's gradient is accumulated in float32, besides the one that is returned.
    return LossMemory(a * rows * (V + E) + FLOAT * rows * E + FLOAT * V * E, kept)


def memory(
    model: LlamaConfig, config: TrainConfig, mesh: MeshShape, device: str = "cuda"
) -> dict[str, int]:
    """Estimate the peak memory of a step by category.

    Args:
        model, config, mesh: architecture, configuration and device mesh of the run.
        device: "cuda" or "cpu"; their fused losses differ.

    Returns:
        Bytes of each category at the peak, in display order; the peak is their sum.
    """
    held = weights_of(model, mesh).held * FLOAT
    fixed = {"weights": held, "optimizer moments": 2 * held}
    if config.optimizer.ema_decay is not None:
        fixed["moving average"] = held
    if mesh.uses_ddp:
        fixed["DDP buckets"] = held
    candidates = _peak_candidates(model, config, mesh, device)
    largest = max(candidates, key=lambda parts: sum(parts.values()))
    order = ("gradients", "activations", "working memory", "loss", "16-bit weights", "FSDP buffers")
    return {**fixed, **{name: largest[name] for name in order if largest.get(name)}}


def checkpoint_bytes(model: LlamaConfig, config: TrainConfig, mesh: MeshShape) -> int:
    """Bytes of host memory that a process needs while a checkpoint is written.

    It is the copy of weights, moments and average that the next steps cannot change; it is written
    tensor by tensor.
    """
    copies = 3 if config.optimizer.ema_decay is None else 4
    return copies * weights_of(model, mesh).held * FLOAT


def _peak_candidates(
    model: LlamaConfig, config: TrainConfig, mesh: MeshShape, device: str
) -> Iterator[dict[str, int]]:
    """Yield the memory besides weights and moments at each point that can be the peak."""
    weights, layers = weights_of(model, mesh), model.num_layers
    block, loss = block_bytes(model, config, mesh), loss_bytes(model, config, mesh, device)
    gradients = FLOAT * weights.held
    # Gradients of earlier micro-batches.
    before = gradients if config.optimizer.gradient_accumulation_steps > 1 else 0
    is_narrow, is_checkpointed = item_size(config) < FLOAT, block.recomputed > 0
    # The 16-bit copy of a weight is stored for the backward pass, or recomputed there. The
    # embedding is not cast, unless its weight is also that of the head.
    embedding_size = model.vocab_size // mesh.tensor * model.embed_dim
    of_block, of_head = (2 * n if is_narrow else 0 for n in (weights.block, embedding_size))
    of_blocks = of_block if is_checkpointed else layers * of_block
    block_gathered, root_gathered = (FLOAT * n if mesh.uses_fsdp else 0 for n in weights[:2])
    yield {
        "gradients": before,
        "activations": layers * block.kept,
        "loss": loss.working + loss.kept,
        "16-bit weights": of_head + (0 if is_checkpointed else of_blocks),
        "FSDP buffers": root_gathered + block_gathered,
    }
    yield {
        "gradients": before,
        "activations": layers * block.kept,
        "working memory": block.recomputed + block.working,
        "loss": loss.kept,
        "16-bit weights": of_blocks,
        # The block and the prefetched one; its gradient and the one that is being reduced.
        "FSDP buffers": root_gathered + 4 * block_gathered,
    }
    # At the first block: its gradient and that of the embedding are the last to be computed.
    last = FLOAT * (weights.block + embedding_size) // mesh.shards
    yield {
        "gradients": gradients if before else gradients - last,
        "working memory": block.recomputed + block.working,
        "FSDP buffers": root_gathered + 4 * block_gathered,
    }
    yield {
        "gradients": gradients,
        # The embedding's gradient, before it is added to that of the head or of earlier
        # micro-batches.
        "working memory": FLOAT * embedding_size if model.tie_embeddings or before else 0,
        # Embedding and head, their gradients, and those that are being reduced.
        "FSDP buffers": 3 * root_gathered,
    }
    yield {"gradients": gradients}
