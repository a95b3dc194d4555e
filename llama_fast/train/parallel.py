"""Parallel training with torch's engines: DDP, FSDP2, tensor and context parallelism.

The processes form a mesh, `replicate` x `shard` x `context` x `tensor`; the last dimension varies
fastest. The result is that of a single process, except for the order of summation.
"""

from __future__ import annotations

import contextlib
import logging
import math
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
from llama_fast.models.uninitialized import uninitialized
from llama_fast.ops import Ring
from llama_fast.train.config import ParallelOptions


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within the context, initialise `torch.distributed` if `torchrun` started this process.

    Args:
        device: the device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":  # Triton and NCCL use the current device
        torch.cuda.set_device(device)
    # gloo besides NCCL, for tensors in CPU memory such as those of checkpoints.
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    dist.init_process_group(backend, device_id=None if device.type == "cpu" else device)
    try:
        yield
    finally:
        dist.destroy_process_group()


class ParallelContext:
    """This process's place in the device mesh of a run.

    Args:
        options: sizes of the mesh.
        device: the device of this process.

    Attributes:
        rank, world_size: rank of this process, and the number of all processes.
        data_rank, data_world_size: rank among the processes with different sequences, and their
            number.
        averaged: number of processes whose gradients are averaged: those with different tokens.

    Raises:
        ValueError: the product of the sizes is not the number of processes.
    """

    def __init__(self, options: ParallelOptions, device: torch.device) -> None:
        self.device = device
        is_distributed = dist.is_initialized()
        self.rank: int = dist.get_rank() if is_distributed else 0
        self.world_size: int = dist.get_world_size() if is_distributed else 1
        inner = options.shard * options.context * options.tensor
        replicas = options.replicate or max(1, self.world_size // inner)
        if replicas * inner != self.world_size:
            raise ValueError(
                f"parallel: expected replicate {options.replicate or 'auto'} x shard "
                f"{options.shard} x context {options.context} x tensor {options.tensor} to be the "
                f"number of processes, got {self.world_size} (torchrun --nproc-per-node)"
            )
        self.context, self.tensor = options.context, options.tensor
        self.data_world_size = replicas * options.shard
        self.data_rank = self.rank // (options.context * options.tensor)
        self.averaged = self.data_world_size * options.context
        self._sharded = options.shard > 1 or (options.tensor > 1 and self.averaged > 1)
        self._replicas = replicas
        self._mesh: DeviceMesh | None = None
        self._ring_group: dist.ProcessGroup | None = None
        self._replica: DistributedDataParallel | None = None
        if self.world_size == 1:
            return
        # FSDP also shards over the processes that have other tokens of the same sequences.
        sizes = (replicas, options.shard * options.context, options.tensor)
        self._mesh = init_device_mesh(
            device.type, sizes, mesh_dim_names=("replicate", "shard", "tensor")
        )
        if options.context > 1:
            sizes = (self.data_world_size, options.context, options.tensor)
            names = ("data", "context", "tensor")
            mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
            self._ring_group = mesh["context"].get_group()

    def parallelize(self, make: Callable[[], LLaMA]) -> LLaMA:
        """Create the model, or this process's part of it, on the device.

        Args:
            make: creates the whole model in CPU memory. If the weights are sharded, it is called on
                rank 0 only, which sends the others their parts, so no other process needs memory
                for the whole model.

        Raises:
            ValueError: `tensor` does not divide heads, width or vocabulary; or the model has
                dropout and `context` or `tensor` is above 1.
        """
        if self._mesh is None or not (self._sharded or self.tensor > 1):
            model = make().to(self.device)
            self._check(model.config)
            return model
        whole = make() if self.rank == 0 else None
        configs = [None if whole is None else whole.config]
        dist.broadcast_object_list(configs, src=0)
        config = configs[0]
        assert config is not None
        self._check(config)
        model = uninitialized(config, "meta")
        if self.tensor > 1:
            # Silences a warning at every clipping that one mesh dimension would be faster than two.
            logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
            _apply_tensor_parallelism(model, self._mesh["tensor"])
        if self._sharded:
            mesh = self._mesh["replicate", "shard"] if self._replicas > 1 else self._mesh["shard"]
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
        """A function like `model.loss` for this process's tokens.

        Its gradients are averaged over `averaged` ranks.
        """
        function: Callable[..., Tensor] = model.loss
        if self.averaged > 1 and not self._sharded:
            self._replica = DistributedDataParallel(_LossModule(model))
            function = self._replica
        if self._ring_group is None:
            return function
        group = self._ring_group

        def ring_loss(
            tokens: Tensor, targets: Tensor, *, cu_seqlens: Tensor, **options: Any
        ) -> Tensor:
            return function(
                tokens, targets, cu_seqlens=cu_seqlens, ring=Ring(group, cu_seqlens), **options
            )

        return ring_loss

    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """A context for a forward and backward pass: DDP reduces gradients after the last one only.

        FSDP reduces them every time, because a delay would take memory for the whole gradient.
        """
        if is_last or self._replica is None:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self._replica.no_sync()
        return context

    def reshard(self, model: LLaMA) -> None:
        """Free the weights that FSDP gathered in a forward pass without a backward pass.

        Until then the model's parameters are not the ones that the optimizer updates.
        """
        if isinstance(model, FSDPModule):
            model.reshard()

    def full_model(self, model: LLaMA) -> LLaMA | None:
        """The model with all weights on rank 0, None on other ranks; every rank must call this."""
        if not (self._sharded or self.tensor > 1):
            return model if self.rank == 0 else None
        # With cpu_offload the other ranks keep nothing.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(model, options=options)
        if self.rank != 0:
            return None
        whole = uninitialized(model.config, "meta")
        whole.load_state_dict(weights, assign=True)
        return whole.to(self.device)

    def sum_joules(self, joules: float) -> float:
        """Sum of the energy over all processes, NaN if one cannot measure it.

        The processes of a host share the counter of its CPUs, which is counted once.
        """
        is_counted = self.device.type == "cuda" or os.environ.get("LOCAL_RANK", "0") == "0"
        return self.sum(joules if is_counted or math.isnan(joules) else 0.0)[0]

    def sum(self, *numbers: float) -> list[float]:
        """Sum of each number over all processes."""
        if self.world_size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result


def check_divides(tensor: int, config: LlamaConfig) -> None:
    """Check that `parallel.tensor` divides the model's dimensions that it splits.

    Raises:
        ValueError: it does not divide one of them.
    """
    for name in ("num_heads", "num_kv_heads", "ffn_dim", "vocab_size"):
        if (value := getattr(config, name)) % tensor:
            raise ValueError(
                f"parallel.tensor: expected a divisor of the model's {name}, {value}, got {tensor}"
            )


class _LossModule(nn.Module):
    """A module whose forward pass is the model's loss: DDP hooks into `forward`."""

    def __init__(self, model: LLaMA) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.model.loss(*args, **options)


def _apply_tensor_parallelism(model: LLaMA, mesh: DeviceMesh) -> None:
    """Split heads, feed-forward width and vocabulary over the ranks of `mesh`.

    Shoeybi et al. 2019, "Megatron-LM" (arXiv:1909.08053): one all-reduce after attention, one after
    the feed-forward part; the loss exchanges three numbers per token.
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
        # linear_cross_entropy reduces over the group itself.
        parallelize_module(model, mesh, {"head": ColwiseParallel()})


def placement_of(tensor: Tensor) -> Any:
    """Mesh and placements of a DTensor, None for other tensors.

    Fused calls, such as those of AdamW, require tensors for which this is equal.
    """
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


def _by_placement(weights: list[nn.Parameter]) -> list[list[Tensor]]:
    """The weights that have gradients, grouped by the placement of these."""
    groups: dict[Any, list[Tensor]] = {}
    for weight in weights:
        if weight.grad is not None:
            groups.setdefault(placement_of(weight.grad), []).append(weight)
    return list(groups.values())


def gradient_norm(weights: list[nn.Parameter]) -> Tensor:
    """Norm of the gradients over all processes: 0-dim, on the device."""
    norms = []
    for group in _by_placement(weights):
        norm = nn.utils.get_total_norm([w.grad for w in group if w.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(weights: list[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients down to `max_norm`, in place.

    Args:
        weights: the weights whose `grad` is scaled.
        max_norm: largest allowed norm over all processes.
        norm: the norm, from :func:`gradient_norm`.
    """
    for group in _by_placement(weights):
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
