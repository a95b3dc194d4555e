"""Estimate a run before it is started: GPU memory, time of a step, communication.

`plan_memory.py` and `plan_traffic.py` compute sizes in bytes. This module has the data of GPUs,
combines everything, and searches for settings with which a run fits.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llama_fast.models import LlamaConfig
from llama_fast.models.loading import locate_config, read_model
from llama_fast.models.loading.hub import SMOLLM2
from llama_fast.train.build import new_shape
from llama_fast.train.config import TrainConfig
from llama_fast.train.flops import PeakFlops, data_sheet, training_flops
from llama_fast.train.parallel import check_divides
from llama_fast.train.plan_memory import MeshShape, checkpoint_bytes, memory
from llama_fast.train.plan_traffic import Traffic, traffic


class GpuSpec(NamedTuple):
    """Properties of a GPU model.

    Attributes:
        name: name for :func:`llama_fast.train.flops.data_sheet`.
        memory: bytes that a process can see.
        link: bytes per second to other GPUs of the host in one direction, over NVLink or PCIe.
    """

    name: str
    memory: int
    link: float


GiB = 1 << 30
# Memory is approximately what torch.cuda.mem_get_info returns. Links are from NVIDIA's data sheets,
# halved for one direction.
GPUS = {
    "a100": GpuSpec("A100", 79 * GiB, 300e9),
    "a100-40gb": GpuSpec("A100", 39 * GiB, 300e9),
    "h100": GpuSpec("H100", 79 * GiB, 450e9),
    "h100-pcie": GpuSpec("H100 PCIe", 79 * GiB, 64e9),
    "h200": GpuSpec("H200", 139 * GiB, 450e9),
    "b200": GpuSpec("B200", 178 * GiB, 900e9),
    "l40s": GpuSpec("L40S", 44 * GiB, 32e9),
    "l4": GpuSpec("L4", 22 * GiB, 32e9),
}
# Estimates: bytes taken by the CUDA context, NCCL's buffers and the libraries' workspaces, and the
# fraction of the rest that is lost to fragmentation.
RESERVED, FRAGMENTED = 2 * GiB, 0.05


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Estimate of a run.

    Attributes:
        model, config, mesh: architecture, configuration and device mesh of the run.
        gpu: memory and links of a GPU.
        peak: peak rate of a GPU, to which the MFU refers.
        mfu: assumed model FLOPs utilisation, from 0 to 1.
        memory: category -> bytes on one GPU, at the time when their sum is largest.
        traffic: communication along each dimension of the mesh in a step.
        flops: number of FLOPs in a step, on all GPUs together.
        tokens: number of tokens in a step, on all GPUs together.
        links: bytes per second of the slowest link in each dimension of the mesh.
    """

    model: LlamaConfig
    config: TrainConfig
    mesh: MeshShape
    gpu: GpuSpec
    peak: PeakFlops
    mfu: float
    memory: dict[str, int]
    traffic: list[Traffic]
    flops: int
    tokens: int
    links: dict[str, float]

    @property
    def peak_bytes(self) -> int:
        """Peak of the memory that tensors take on one GPU, in bytes."""
        return sum(self.memory.values())

    @property
    def checkpoint_bytes(self) -> int:
        """Host memory that each process needs while a checkpoint is written, in bytes."""
        return checkpoint_bytes(self.model, self.config, self.mesh)

    @property
    def usable(self) -> int:
        """Memory of a GPU that is available to tensors, in bytes."""
        return int((self.gpu.memory - RESERVED) * (1 - FRAGMENTED))

    @property
    def fits(self) -> bool:
        """Whether the peak is at most the usable memory."""
        return self.peak_bytes <= self.usable

    @property
    def step_seconds(self) -> float:
        """Duration of a step at the assumed MFU, which includes waiting for communication."""
        return self.flops / (self.mfu * self.peak.flops * self.mesh.world_size)

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all GPUs together."""
        return self.tokens / self.step_seconds

    @property
    def run_seconds(self) -> float:
        """Duration of all steps, without validation and checkpoints."""
        return self.config.steps * self.step_seconds

    def seconds_on_link(self, traffic: Traffic) -> float:
        """Minimum duration of a communication, from the bandwidth of its link."""
        return traffic.sent / self.links[traffic.dimension]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON: sizes in bytes, times in seconds."""
        return {
            "model": dataclasses.asdict(self.model),
            "parameters": self.model.num_parameters(),
            "mesh": self.mesh._asdict(),
            "gpus": self.mesh.world_size,
            "gpu": {**self.gpu._asdict(), "usable": self.usable, "flops": self.peak.flops},
            "mfu": self.mfu,
            "memory": {**self.memory, "peak": self.peak_bytes},
            "checkpoint": self.checkpoint_bytes,
            "fits": self.fits,
            "traffic": [
                {**t._asdict(), "sent": t.sent, "seconds": self.seconds_on_link(t)}
                for t in self.traffic
            ],
            "step": {
                "flops": self.flops,
                "tokens": self.tokens,
                "seconds": self.step_seconds,
                "tokens_per_second": self.tokens_per_second,
            },
            "run": {"steps": self.config.steps, "seconds": self.run_seconds},
        }


def mesh_of(config: TrainConfig, gpus: int) -> MeshShape:
    """The device mesh of a run on a number of GPUs.

    Raises:
        ValueError: the product of the sizes in the configuration is not `gpus`.
    """
    p = config.parallel
    inner = p.shard * p.context * p.tensor
    replicas = p.replicate or max(1, gpus // inner)
    if replicas * inner != gpus:
        raise ValueError(
            f"--gpus: expected the product of parallel.replicate {p.replicate or 'auto'}, shard "
            f"{p.shard}, context {p.context} and tensor {p.tensor}, got {gpus}"
        )
    return MeshShape(replicas, p.shard, p.context, p.tensor)


def has_shape(init_from: str) -> bool:
    """Return whether the architecture of `model.init_from` can be read."""
    return init_from == SMOLLM2 or Path(init_from).exists() or locate_config(init_from) is not None


def model_of(config: TrainConfig, vocab_size: int | None) -> LlamaConfig:
    """The architecture of a run's model, without creating its weights.

    Args:
        config: the run's configuration.
        vocab_size: vocabulary size of its data; None uses that of the preset.
    """
    options = config.model
    if options.init_from is not None:
        from llama_fast.models.checkpoints.huggingface import read_config

        source = Path(options.init_from)
        if options.init_from == SMOLLM2 or (
            source.exists() and not (source / "config.json").exists()
        ):
            return read_model(source, with_tokenizer=False)[0].config
        path = source / "config.json" if source.exists() else locate_config(source)
        if path is not None:
            return read_config(path)
    # For weights that do not exist yet, the architecture is that of the preset.
    without_weights = dataclasses.replace(options, init_from=None)
    shape = new_shape(dataclasses.replace(config, model=without_weights), vocab_size)
    assert shape is not None
    return shape


def plan(
    config: TrainConfig,
    model: LlamaConfig,
    *,
    gpus: int,
    gpu: str = "h100",
    mfu: float = 0.4,
    gpus_per_host: int = 8,
    network: float = 50e9,
) -> TrainingPlan:
    """Estimate a run.

    Args:
        config: the run's configuration.
        model: the architecture, from :func:`model_of`.
        gpus: number of GPUs on all hosts.
        gpu: name of a GPU, a key of ``GPUS``.
        mfu: assumed model FLOPs utilisation in the run's precision.
        gpus_per_host: number of GPUs connected by `GpuSpec.link`; others use the network.
        network: bytes per second of each GPU to other hosts in one direction.

    Raises:
        ValueError: a number is not positive, the GPU is unknown, or the mesh does not have `gpus`
            processes or does not divide the model.
    """
    for name, value, expected, ok in (
        ("--gpus", gpus, "at least 1", gpus >= 1),
        ("--gpu", gpu, f"one of {', '.join(GPUS)}", gpu in GPUS),
        ("--mfu", mfu, "0 < MFU <= 1", 0 < mfu <= 1),
        ("--gpus-per-host", gpus_per_host, "at least 1", gpus_per_host >= 1),
        ("--network", network, "a positive number", network > 0),
    ):
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    mesh = mesh_of(config, gpus)
    check_divides(mesh.tensor, model)
    data, spec = config.data, GPUS[gpu]
    rows = (
        data.micro_batch_size * config.optimizer.gradient_accumulation_steps * mesh.data_world_size
    )
    tokens = rows * data.seq_len
    # Upper bounds: each sequence is one document, and each token has a target.
    pairs = rows * data.seq_len * (data.seq_len + 1) // 2
    peak = data_sheet(spec.name, config.precision)
    assert peak is not None
    # Number of neighbouring ranks that a communication spans; the last dimension varies fastest.
    inner = mesh.context * mesh.tensor
    spans = {"tensor": mesh.tensor, "context": inner, "shard": inner * mesh.shard,
             "replicate": mesh.world_size}  # fmt: skip
    links = {d: spec.link if span <= gpus_per_host else network for d, span in spans.items()}
    return TrainingPlan(
        model=model,
        config=config,
        mesh=mesh,
        gpu=spec,
        peak=peak,
        mfu=mfu,
        memory=memory(model, config, mesh),
        traffic=traffic(model, config, mesh),
        flops=training_flops(model, tokens, tokens, pairs),
        tokens=tokens,
        links=links,
    )


class Advice(NamedTuple):
    """Settings with which a run fits.

    Attributes:
        change: the options to change, as text.
        plan: the plan of the changed run.
    """

    change: str
    plan: TrainingPlan


def advice(original: TrainingPlan, **options: Any) -> list[Advice]:
    """Search for settings with which a run fits, at the same batch size.

    Args:
        original: plan of a run that does not fit.
        **options: the other arguments with which :func:`plan` was called.

    Returns:
        The settings; those with smaller changes and less communication come first.
    """
    result = []
    for change, config in _changes(original.config, options["gpus"]):
        try:
            changed = plan(config, original.model, **options)
        except ValueError:  # sizes that do not divide the model
            continue
        if changed.fits:
            result.append(Advice(change, changed))
    return result


def _changes(config: TrainConfig, gpus: int) -> Iterator[tuple[str, TrainConfig]]:
    """Yield (changes as text, configuration) for settings that need less memory per process."""
    p = config.parallel
    small_batch: dict[str, Any] = {"data.micro_batch_size": 1}
    bfloat16: dict[str, Any] = {"precision": "bfloat16"}
    recompute: dict[str, Any] = {"activation_checkpointing": "full"}
    minimum = {**small_batch, **recompute, **({} if config.precision != "float32" else bfloat16)}
    changes = [
        {"activation_checkpointing": "selective"},
        recompute,
        small_batch,
        bfloat16,
        {**small_batch, **recompute},
        minimum,
    ]
    sizes = [n for n in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= gpus]
    for name, current, others in (
        ("shard", p.shard, p.context * p.tensor),
        ("tensor", p.tensor, p.context * p.shard),
        ("context", p.context, p.shard * p.tensor),
    ):
        for size in sizes:
            if size > current and gpus % (size * others) == 0:
                split = {f"parallel.{name}": size, "parallel.replicate": 0}
                changes += [split, {**minimum, **split}]
    accumulation = config.optimizer.gradient_accumulation_steps
    rows = config.data.micro_batch_size * accumulation * mesh_of(config, gpus).data_world_size
    seen = [config]
    for change in changes:
        changed, texts = copy.deepcopy(config), []
        for name, value in change.items():
            section, _, field = name.rpartition(".")
            options = getattr(changed, section) if section else changed
            if getattr(options, field) != value:
                setattr(options, field, value)
                texts.append(f"{name} {value}")
        # More accumulation compensates for smaller micro-batches or fewer data-parallel ranks.
        times = rows // (changed.data.micro_batch_size * mesh_of(changed, gpus).data_world_size)
        if times > accumulation:
            changed.optimizer.gradient_accumulation_steps = times
            texts.append(f"optimizer.gradient_accumulation_steps {times}")
        if changed not in seen and times >= 1:
            seen.append(changed)
            yield ", ".join(texts), changed
