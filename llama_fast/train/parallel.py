"""A model spread over processes with torch's engines: DDP, FSDP2, tensor and context parallelism.

The processes form a mesh, `replicate` x `shard` x `context` x `tensor`, the last the fastest. What
they compute together is what one process computes, but for the order of sums.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.ops import Ring
from llama_fast.train.config import ParallelOptions


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it started this one, until the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":  # Triton and NCCL work on the current one
        torch.cuda.set_device(device)
    # gloo too, beside NCCL: numbers and checkpoints go from host to host.
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    dist.init_process_group(backend, device_id=None if device.type == "cpu" else device)
    try:
        yield
    finally:
        dist.destroy_process_group()


class ParallelContext:
    """This process's part in a run.

    Args:
        options: the sizes of the mesh.
        device: of this process.

    Attributes:
        rank, ranks: of all processes.
        data_rank, data_ranks: which share of the rows this process gets, and how many there are.

    Raises:
        ValueError: sizes whose product is not the number of processes.
    """

    def __init__(self, options: ParallelOptions, device: torch.device) -> None:
        self.device = device
        started = dist.is_initialized()
        self.rank: int = dist.get_rank() if started else 0
        self.ranks: int = dist.get_world_size() if started else 1
        inner = options.shard * options.context * options.tensor
        copies = options.replicate or max(1, self.ranks // inner)
        if copies * inner != self.ranks:
            raise ValueError(
                f"parallel: expected a product of replicate {options.replicate or 'auto'}, shard "
                f"{options.shard}, context {options.context} and tensor {options.tensor} equal to "
                f"the number of processes, got {self.ranks} of them (torchrun --nproc-per-node)"
            )
        self.context, self.tensor = options.context, options.tensor
        self.data_ranks = copies * options.shard
        self.data_rank = self.rank // (options.context * options.tensor)
        # Whose gradients are averaged: all that see different tokens.
        self.averaged = self.data_ranks * options.context
        self._sharded = options.shard > 1 or (options.tensor > 1 and self.averaged > 1)
        self._copies = copies
        self._mesh: DeviceMesh | None = None
        self._ring_group: dist.ProcessGroup | None = None
        self._replica: DistributedDataParallel | None = None
        if self.ranks == 1:
            return
        # FSDP shares out over those with other tokens of the same rows too.
        sizes = (copies, options.shard * options.context, options.tensor)
        self._mesh = init_device_mesh(
            device.type, sizes, mesh_dim_names=("replicate", "shard", "tensor")
        )
        if options.context > 1:
            sizes = (self.data_ranks, options.context, options.tensor)
            names = ("data", "context", "tensor")
            mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
            self._ring_group = mesh["context"].get_group()

    def spread(self, make: Callable[[], LLaMA]) -> LLaMA:
        """The model that `make` makes, on this process's device, or its part of it.

        Where the weights are shared out, `make` is called on the first process alone, and the
        others get their parts from it: nobody else needs memory for the whole.

        Raises:
            ValueError: heads, width or vocabulary that `tensor` does not divide; dropout with
                `context` or `tensor`.
        """
        if self._mesh is None or not (self._sharded or self.tensor > 1):
            model = make().to(self.device)
            self._check(model.config)
            return model
        whole = make() if self.rank == 0 else None
        said = [None if whole is None else whole.config]
        dist.broadcast_object_list(said, src=0)
        config = said[0]
        assert config is not None
        self._check(config)
        with torch.device("meta"):
            model = LLaMA(config)
        if self.tensor > 1:
            # Whoever shards over two dimensions is told at every clip that one would be faster.
            logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
            _share_out(model, self._mesh["tensor"])
        if self._sharded:
            mesh = self._mesh["replicate", "shard"] if self._copies > 1 else self._mesh["shard"]
            for block in model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            register_fsdp_forward_method(model, "loss")
        model.to_empty(device=self.device)
        weights = {} if whole is None else whole.state_dict()
        whole = None
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, weights, options=options)
        return model

    def _check(self, config: LlamaConfig) -> None:
        check_divides(self.tensor, config)
        if config.p_dropout > 0 and self.context * self.tensor > 1:
            raise ValueError(
                f"model.overrides.p_dropout: expected 0 with parallel.context or parallel.tensor, "
                f"got {config.p_dropout}"
            )

    def loss_function(self, model: LLaMA) -> Callable[..., Tensor]:
        """`model.loss` of this process's tokens; its gradients are averaged over `averaged`."""
        function: Callable[..., Tensor] = model.loss
        if self.averaged > 1 and not self._sharded:
            self._replica = DistributedDataParallel(_Loss(model))
            function = self._replica
        if self._ring_group is None:
            return function
        group = self._ring_group

        def spread(
            tokens: Tensor, targets: Tensor, *, cu_seqlens: Tensor, **options: Any
        ) -> Tensor:
            return function(
                tokens, targets, cu_seqlens=cu_seqlens, ring=Ring(group, cu_seqlens), **options
            )

        return spread

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around each pass, forward and backward: copies exchange gradients after the last alone.

        Shards exchange them each time: to wait would take memory for the gradient of the whole.
        """
        if last or self._replica is None:
            return contextlib.nullcontext()
        waiting: contextlib.AbstractContextManager[Any] = self._replica.no_sync()
        return waiting

    def after_forward_alone(self, model: LLaMA) -> None:
        """Give back what FSDP keeps gathered for a backward pass, if none has followed.

        Meanwhile the model's parameters are others than those that the optimizer knows.
        """
        if isinstance(model, FSDPModule):
            model.reshard()

    def whole(self, model: LLaMA) -> LLaMA | None:
        """On the first process a model with all weights, on the others None; every one calls it."""
        if not (self._sharded or self.tensor > 1):
            return model if self.rank == 0 else None
        # With the offload the others keep nothing of it.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(model, options=options)
        if self.rank != 0:
            return None
        with torch.device("meta"):
            found = LLaMA(model.config)
        found.load_state_dict(weights, assign=True)
        return found.to(self.device)

    def sum_over_meters(self, joules: float, device: torch.device) -> float:
        """Energy of every process, NaN if one has none; a CPU's is the same for all on a host."""
        counted = device.type == "cuda" or os.environ.get("LOCAL_RANK", "0") == "0"
        return self.sum(joules if counted or joules != joules else 0.0)[0]

    def sum(self, *numbers: float) -> list[float]:
        """Of every process, added up."""
        if self.ranks == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found


def check_divides(tensor: int, config: LlamaConfig) -> None:
    """Raise ValueError unless `parallel.tensor` divides what it shares out of a model."""
    for name in ("num_heads", "num_kv_heads", "ffn_dim", "vocab_size"):
        if (value := getattr(config, name)) % tensor:
            raise ValueError(
                f"parallel.tensor: expected a divisor of the model's {name}, {value}, got {tensor}"
            )


class _Loss(nn.Module):
    """A model whose forward pass is its loss, for DDP to watch."""

    def __init__(self, model: LLaMA) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.model.loss(*args, **options)


def _share_out(model: LLaMA, mesh: DeviceMesh) -> None:
    """Heads, feed-forward width and vocabulary over the ranks of `mesh`.

    Shoeybi et al. 2019, "Megatron-LM" (arXiv:1909.08053): one sum over the ranks after attention,
    one after the feed-forward part; the loss exchanges three numbers a token.
    """
    parallelize_module(
        model,
        mesh,
        {"embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())},
    )
    for block in model.layers:
        columns = ("attention.q_proj", "attention.k_proj", "attention.v_proj",
                   "feed_forward.gate_proj", "feed_forward.up_proj")  # fmt: skip
        rows = ("attention.o_proj", "feed_forward.down_proj")
        plan = {name: ColwiseParallel() for name in columns}
        parallelize_module(block, mesh, {**plan, **{name: RowwiseParallel() for name in rows}})
    if model.head is not None:
        # Its input and output are those of linear_cross_entropy, which knows of the group.
        parallelize_module(model, mesh, {"head": ColwiseParallel()})


def kind_of(weight: Tensor) -> Any:
    """What tells apart weights that one fused call can't take together: the mesh they are on."""
    return (weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else None


def clip_gradients(weights: list[nn.Parameter], largest: float) -> float:
    """Scale the gradients so that their norm over all processes is at most `largest`.

    Returns:
        The norm before.
    """
    groups: dict[Any, list[Tensor]] = {}
    for weight in weights:
        if weight.grad is not None:
            groups.setdefault(kind_of(weight.grad), []).append(weight)
    norms = []
    for group in groups.values():
        norm = nn.utils.get_total_norm([w.grad for w in group if w.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    found: float = total.item()
    if not found <= largest - 1e-5:  # else torch, which adds 1e-6, would multiply all of them by 1
        for group in groups.values():
            nn.utils.clip_grads_with_norm_(group, largest, total)
    return found
