"""What a training step holds in the memory of one process.

The largest sum is looked for at the moments of a step at which it can be: the end of the
forward pass, the first and the last block of the backward pass, the embedding's gradient, and the
optimizer's step. Bytes of
weights, gradients, moments and saved activations follow from shapes; working memory is that of the
largest operation. What the allocator rounds up and what CUDA and NCCL keep is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llama_fast.models import LlamaConfig
from llama_fast.ops.chunked import WIDEN_ELEMENTS, rows_per_chunk
from llama_fast.train.config import TrainConfig

FLOAT = 4  # bytes of a float32: weights, gradients and moments
CHUNK_ROWS = 4096  # of the logits that the GPU's fused loss holds; kernels/linear_cross_entropy.py
# Of the CPU's; csrc/cpu/linear_cross_entropy_plan.h
CPU_LEAST, CPU_MOST = 16 << 20, 512 << 20


class MeshShape(NamedTuple):
    """The mesh of processes: `parallel` of a configuration with `replicate` worked out."""

    replicate: int
    shard: int
    context: int
    tensor: int

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.replicate * self.shard * self.context * self.tensor

    @property
    def data_ranks(self) -> int:
        """Processes with rows of their own."""
        return self.replicate * self.shard

    @property
    def averaged(self) -> int:
        """Processes whose gradients are averaged."""
        return self.data_ranks * self.context

    @property
    def uses_fsdp(self) -> bool:
        """As :class:`llama_fast.train.parallel.ParallelContext` decides it."""
        return self.shard > 1 or (self.tensor > 1 and self.averaged > 1)

    @property
    def uses_ddp(self) -> bool:
        """Whether every process has all weights of its tensor parallel part, and there are more."""
        return self.averaged > 1 and not self.uses_fsdp

    @property
    def shards(self) -> int:
        """Parts that FSDP makes of each weight."""
        return self.shard * self.context if self.uses_fsdp else 1


class WeightCounts(NamedTuple):
    """Numbers of one process's weights.

    Attributes:
        block, root: of a block, and of all else (embedding, last norm, head), gathered: what FSDP
            puts together of all its parts, padding of uneven ones included.
        held: what stays on the process.
    """

    block: int
    root: int
    held: int


def weights_of(model: LlamaConfig, mesh: MeshShape) -> WeightCounts:
    """Of the first process, which has the most where parts are uneven."""

    def padded(shapes: Iterator[tuple[int, int]]) -> int:
        return sum(-(-rows // mesh.shards) * columns for rows, columns in shapes)

    block, root = padded(_block_shapes(model, mesh)), padded(_root_shapes(model, mesh))
    held = model.num_layers * block + root
    return WeightCounts(block * mesh.shards, root * mesh.shards, held)


def _block_shapes(model: LlamaConfig, mesh: MeshShape) -> Iterator[tuple[int, int]]:
    E, D, t = model.embed_dim, model.head_dim, mesh.tensor
    heads, kv, width = model.num_heads * D // t, model.num_kv_heads * D // t, model.ffn_dim // t
    yield from ((heads, E), (kv, E), (kv, E), (E, heads), (width, E), (width, E), (E, width))
    yield from ((E, 1), (E, 1))  # norms, which every tensor parallel process has


def _root_shapes(model: LlamaConfig, mesh: MeshShape) -> Iterator[tuple[int, int]]:
    rows, E = model.vocab_size // mesh.tensor, model.embed_dim
    yield from ((rows, E),) * (1 if model.tie_embeddings else 2)
    yield E, 1


def item_size(config: TrainConfig) -> int:
    """Bytes of a number in a matrix product."""
    return FLOAT if config.precision == "float32" else 2


def tokens_of(config: TrainConfig, mesh: MeshShape) -> int:
    """Of a micro-batch on one process."""
    return -(-config.data.micro_batch_size * config.data.seq_len // mesh.context)


class BlockMemory(NamedTuple):
    """Bytes of a block.

    Attributes:
        kept: from its forward to its backward pass.
        again: made again in the backward pass, all of it while that lasts.
        working: of the backward pass besides, at most.
    """

    kept: int
    again: int
    working: int


def block_bytes(model: LlamaConfig, config: TrainConfig, mesh: MeshShape) -> BlockMemory:
    """Activations of a block: what its operations save for the backward pass.

    The sum that the blocks add to and its gradient are float32, the operands of products are in
    the precision of the run. Without checkpointing are kept: both inputs of the norms, the
    normalised ones (the first is cast for each of the three projections), q, k, v and the output
    of attention with two logs a head, and gate, up and their product.
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
        working: while it runs.
        kept: its input and the gradients that it makes at once, until the backward pass is at them.
    """

    working: int
    kept: int


def loss_bytes(model: LlamaConfig, config: TrainConfig, mesh: MeshShape, device: str) -> LossMemory:
    """Logits of a few rows at a time, and the gradients of hidden states and head."""
    a, N = item_size(config), tokens_of(config, mesh)
    E, V = model.embed_dim, model.vocab_size // mesh.tensor
    # float16 would round small gradients to zero before they are scaled.
    g = FLOAT if config.precision == "float16" else a
    hidden = FLOAT * N * (E + 1) + a * N * E * (1 if a == FLOAT else 2)  # for the norm, and cast
    if mesh.tensor > 1:  # the chunked form, in float32
        rows = min(N, rows_per_chunk(V, FLOAT))
        working = FLOAT * (rows * (V + 3 * E) + (WIDEN_ELEMENTS if a < FLOAT else 0))
        return LossMemory(working, hidden + FLOAT * (N * E + V * E))
    kept = hidden + g * (N * E + V * E)
    if device == "cpu":
        torchs = 3 * N * V * a
        return LossMemory(min(max(CPU_LEAST, torchs // 11), CPU_MOST), kept)
    rows = min(N, CHUNK_ROWS)
    # The head's gradient is summed in float32, next to which stands the one that is returned.
    return LossMemory(a * rows * (V + E) + FLOAT * rows * E + FLOAT * V * E, kept)


def memory(
    model: LlamaConfig, config: TrainConfig, mesh: MeshShape, device: str = "cuda"
) -> dict[str, int]:
    """Bytes of each kind at the moment of a step at which they are the most.

    Args:
        model, config, mesh: of the run.
        device: "cuda" or "cpu", whose fused losses differ.

    Returns:
        Kinds in the order to be shown; their sum is the peak.
    """
    held = weights_of(model, mesh).held * FLOAT
    fixed = {"weights": held, "optimizer moments": 2 * held}
    if config.optimizer.ema_decay is not None:
        fixed["moving average"] = held
    if mesh.uses_ddp:
        fixed["DDP buckets"] = held
    moments = list(_moments(model, config, mesh, device))
    largest = max(moments, key=lambda kinds: sum(kinds.values()))
    order = ("gradients", "activations", "working memory", "loss", "16-bit weights", "FSDP buffers")
    return {**fixed, **{kind: largest[kind] for kind in order if largest.get(kind)}}


def _moments(
    model: LlamaConfig, config: TrainConfig, mesh: MeshShape, device: str
) -> Iterator[dict[str, int]]:
    """What is there besides weights and moments, at each of five moments."""
    weights, layers = weights_of(model, mesh), model.num_layers
    block, loss = block_bytes(model, config, mesh), loss_bytes(model, config, mesh, device)
    gradients = FLOAT * weights.held
    # Of the micro-batches before; none is there before the first.
    before = gradients if config.optimizer.gradient_accumulation_steps > 1 else 0
    is_narrow, is_checkpointed = item_size(config) < FLOAT, block.again > 0
    # A product's 16-bit copy of its weight is kept for its backward pass, or made there again. The
    # embedding is not cast, but its weight is where it is the head too.
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
        "working memory": block.again + block.working,
        "loss": loss.kept,
        "16-bit weights": of_blocks,
        # The block and the one fetched before its turn; its gradient and the one on its way.
        "FSDP buffers": root_gathered + 4 * block_gathered,
    }
    # At the first block, whose gradient, and the embedding's, are the last to come.
    last = FLOAT * (weights.block + embedding_size) // mesh.shards
    yield {
        "gradients": gradients if before else gradients - last,
        "working memory": block.again + block.working,
        "FSDP buffers": root_gathered + 4 * block_gathered,
    }
    yield {
        "gradients": gradients,
        # The embedding's stands beside what it is added to: the head's, or that of before.
        "working memory": FLOAT * embedding_size if model.tie_embeddings or before else 0,
        # Embedding and head, their gradients, and these on their way.
        "FSDP buffers": 3 * root_gathered,
    }
    yield {"gradients": gradients}
