"""What a run will need, before it is started: memory of a GPU, time of a step, traffic of the mesh.

Sizes come from `plan_memory.py` and `plan_traffic.py`; this file knows the machines, puts all of it
together, and looks for settings with which a run fits that does not.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llama_fast.models import LlamaConfig, load
from llama_fast.train.build import new_shape
from llama_fast.train.config import TrainConfig
from llama_fast.train.flops import PeakFlops, data_sheet, training_flops
from llama_fast.train.parallel import check_divides
from llama_fast.train.plan_memory import MeshShape, memory
from llama_fast.train.plan_traffic import Traffic, traffic


class GpuSpec(NamedTuple):
    """A kind of GPU.

    Attributes:
        name: that :func:`llama_fast.train.flops.data_sheet` knows.
        memory: bytes that a process finds on it.
        link: bytes per second to the other GPUs of its host, one way: NVLink, or PCIe.
    """

    name: str
    memory: int
    link: float


GiB = 1 << 30
# Memory as torch.cuda.mem_get_info gives it, about; links of NVIDIA's data sheets, halved for one
# way.
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
# The CUDA context, NCCL's buffers and the libraries' workspaces; an estimate, as is the share of
# the rest that the allocator cannot use for being in pieces.
RESERVED, FRAGMENTED = 2 * GiB, 0.05


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What a run needs.

    Attributes:
        model, config, mesh: of the run.
        gpu, peak: its memory and links; the rate that MFU is a share of.
        mfu: assumed.
        memory: bytes of each kind on one GPU at the worst moment; the peak is their sum.
        traffic: of each dimension of the mesh in a step.
        flops: of a step, on all GPUs together.
        tokens: of a step.
        links: bytes per second of each dimension's slowest link.
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
        """The most that tensors take on one GPU."""
        return sum(self.memory.values())

    @property
    def usable(self) -> int:
        """Bytes of a GPU that tensors can have."""
        return int((self.gpu.memory - RESERVED) * (1 - FRAGMENTED))

    @property
    def fits(self) -> bool:
        """Whether the peak is within what is usable."""
        return self.peak_bytes <= self.usable

    @property
    def step_seconds(self) -> float:
        """Of a step at the MFU assumed, in which waiting for others is counted."""
        return self.flops / (self.mfu * self.peak.flops * self.mesh.ranks)

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.tokens / self.step_seconds

    @property
    def run_seconds(self) -> float:
        """Of all steps; validation and checkpoints come on top."""
        return self.config.steps * self.step_seconds

    def seconds_on_link(self, found: Traffic) -> float:
        """The least that an exchange takes, if nothing is computed meanwhile."""
        return found.sent / self.links[found.dimension]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: sizes in bytes, times in seconds."""
        return {
            "model": dataclasses.asdict(self.model),
            "parameters": self.model.num_parameters(),
            "mesh": self.mesh._asdict(),
            "gpus": self.mesh.ranks,
            "gpu": {**self.gpu._asdict(), "usable": self.usable, "flops": self.peak.flops},
            "mfu": self.mfu,
            "memory": {**self.memory, "peak": self.peak_bytes},
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
    """The mesh of a run on so many GPUs.

    Raises:
        ValueError: the sizes in the configuration do not make that number.
    """
    p = config.parallel
    inner = p.shard * p.context * p.tensor
    copies = p.replicate or max(1, gpus // inner)
    if copies * inner != gpus:
        raise ValueError(
            f"--gpus: expected a product of parallel.replicate {p.replicate or 'auto'}, shard "
            f"{p.shard}, context {p.context} and tensor {p.tensor}, got {gpus}"
        )
    return MeshShape(copies, p.shard, p.context, p.tensor)


def model_of(config: TrainConfig, vocab_size: int | None) -> LlamaConfig:
    """The shape of a run's model, without its weights.

    Args:
        config: of the run.
        vocab_size: of its data; None takes the preset's.
    """
    options = config.model
    if options.init_from is not None and Path(options.init_from).exists():
        folder = Path(options.init_from)
        if not (folder / "config.json").exists():
            return load(options.init_from)[0].config
        from llama_fast.models.checkpoints.huggingface import read_config

        return read_config(folder / "config.json")
    # Weights that are not here yet have the preset's shape.
    plain = dataclasses.replace(config, model=dataclasses.replace(options, init_from=None))
    shape = new_shape(plain, vocab_size)
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
        config: of the run.
        model: as :func:`model_of` gives it.
        gpus: all together.
        gpu: a name in ``GPUS``.
        mfu: share of the GPU's rate in the run's precision that a step reaches.
        gpus_per_host: joined by their own links; what goes further goes over the network.
        network: bytes per second of each GPU to other hosts.

    Raises:
        ValueError: a size that is not positive, an unknown GPU, a mesh that is not `gpus`
            large or does not divide the model.
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
    data, kind = config.data, GPUS[gpu]
    rows = data.micro_batch_size * config.optimizer.gradient_accumulation_steps * mesh.data_ranks
    tokens = rows * data.seq_len
    # The most there can be: each row one document, each token with a target.
    pairs = rows * data.seq_len * (data.seq_len + 1) // 2
    peak = data_sheet(kind.name, config.precision)
    assert peak is not None
    # How many neighbouring ranks an exchange spans, the last dimension the fastest.
    inner = mesh.context * mesh.tensor
    spans = {"tensor": mesh.tensor, "context": inner, "shard": inner * mesh.shard,
             "replicate": mesh.ranks}  # fmt: skip
    links = {d: kind.link if span <= gpus_per_host else network for d, span in spans.items()}
    return TrainingPlan(
        model=model,
        config=config,
        mesh=mesh,
        gpu=kind,
        peak=peak,
        mfu=mfu,
        memory=memory(model, config, mesh),
        traffic=traffic(model, config, mesh),
        flops=training_flops(model, tokens, tokens, pairs),
        tokens=tokens,
        links=links,
    )


class Advice(NamedTuple):
    """A change of settings, in words, and the plan with it."""

    change: str
    plan: TrainingPlan


def advice(found: TrainingPlan, **options: Any) -> list[Advice]:
    """Changes that make a run need less memory, one at a time and then together.

    Args:
        found: a plan.
        **options: what :func:`plan` was given besides configuration and model.

    Returns:
        Those with which the run fits; what changes less, and sends less, comes first.
    """
    fitting = []
    for change, changed in _changes(found.config, options["gpus"]):
        try:
            other = plan(changed, found.model, **options)
        except ValueError:  # sizes that do not divide
            continue
        if other.fits:
            fitting.append(Advice(change, other))
    return fitting


def _changes(config: TrainConfig, gpus: int) -> Iterator[tuple[str, TrainConfig]]:
    """Changes of what a process holds, after which as many rows make a step."""
    p = config.parallel
    fewer: dict[str, Any] = {"data.micro_batch_size": 1}
    narrow: dict[str, Any] = {"precision": "bfloat16"}
    full: dict[str, Any] = {"activation_checkpointing": "full"}
    least = {**fewer, **full, **({} if config.precision != "float32" else narrow)}
    steps = [
        {"activation_checkpointing": "selective"},
        full,
        fewer,
        narrow,
        {**fewer, **full},
        least,
    ]
    sizes = [n for n in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= gpus]
    for name, held, others in (
        ("shard", p.shard, p.context * p.tensor),
        ("tensor", p.tensor, p.context * p.shard),
        ("context", p.context, p.shard * p.tensor),
    ):
        for size in sizes:
            if size > held and gpus % (size * others) == 0:
                more = {f"parallel.{name}": size, "parallel.replicate": 0}
                steps += [more, {**least, **more}]
    accumulation = config.optimizer.gradient_accumulation_steps
    rows = config.data.micro_batch_size * accumulation * mesh_of(config, gpus).data_ranks
    seen = [config]
    for step in steps:
        changed, said = copy.deepcopy(config), []
        for name, value in step.items():
            section, _, field = name.rpartition(".")
            place = getattr(changed, section) if section else changed
            if getattr(place, field) != value:
                setattr(place, field, value)
                said.append(f"{name} {value}")
        # What they compute one after the other instead of beside each other.
        times = rows // (changed.data.micro_batch_size * mesh_of(changed, gpus).data_ranks)
        if times > accumulation:
            changed.optimizer.gradient_accumulation_steps = times
            said.append(f"optimizer.gradient_accumulation_steps {times}")
        if changed not in seen and times >= 1:
            seen.append(changed)
            yield ", ".join(said), changed
