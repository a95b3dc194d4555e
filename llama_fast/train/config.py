"""Configuration of a training run: every field is a `llama-fast train` option and a YAML key.

The string below each field is its documentation; `llama-fast train --help` prints it. This module
imports no torch, so that the help is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llama_fast.train.schedules import LRSchedule, ScheduleName

Precision = Literal["float32", "bfloat16", "float16"]
ReportTo = Literal["none", "wandb", "trackio"]


@dataclass
class ModelOptions:
    """Model architecture and initial weights."""

    preset: str = "debug"
    """Architecture of a published model (`llama3-8b`, `smollm2-135m`, ...), or `debug`."""
    init_from: str | None = None
    """Pretrained weights to start from (Hugging Face folder or name, GGUF, Meta, llama2.c, folder
    of a run); null draws random weights. Not read again when a run is resumed."""
    overrides: dict[str, int | float | bool] = field(default_factory=dict)
    """Fields of the preset to replace, such as `{num_layers: 4}`; the default `vocab_size` is that
    of the data."""


@dataclass
class DataOptions:
    """Token shards, written by `llama-fast tokenize`."""

    train: str = "shards"
    """Folder with the training shards."""
    valid: str | None = None
    """Folder with the validation shards."""
    seq_len: int = 256
    """Length of a packed sequence in tokens. Documents are packed without padding; longer ones are
    cut."""
    micro_batch_size: int = 8
    """Sequences in a micro-batch on each data-parallel rank."""
    num_workers: int = 0
    """Worker processes that prefetch data. The batches do not depend on this number."""
    verify: bool = True
    """Whether to compare every shard with its hash before training starts."""


@dataclass
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), gradients and learning rate."""

    lr: float = 1e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: float = 0.1
    """Weight decay of matrices; norm weights have none."""
    max_grad_norm: float | None = 1.0
    """Gradients are clipped to this norm; null disables clipping."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in an optimizer step."""
    z_loss: float = 0.0
    """Coefficient of the z-loss, the squared log-sum-exp of the logits (PaLM, arXiv:2204.02311)."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights; null keeps no average."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    lr_schedule: ScheduleName = "cosine"
    """Learning rate after the warm-up; `wsd` is constant and decays at the end of the run."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the run, as a fraction of the peak."""
    decay_ratio: float = 0.2
    """Fraction of the run over which `wsd` decays."""


@dataclass
class ParallelOptions:
    """Dimensions of the device mesh; their product is the number of processes of `torchrun`."""

    replicate: int = 0
    """Replicas of the model, each with its own data (DDP; HSDP if `shard` is above 1). 0 uses all
    processes that the other dimensions leave."""
    shard: int = 1
    """Processes that weights, gradients and moments are sharded over, each with its own data
    (FSDP2)."""
    context: int = 1
    """Processes that the tokens of each sequence are split over (ring attention)."""
    tensor: int = 1
    """Processes that heads, feed-forward width and vocabulary are split over (tensor
    parallelism)."""


@dataclass
class TrainConfig:
    """Configuration of a training run."""

    out: str = "run"
    """Output folder for checkpoints, metrics and the configuration. A run in it is resumed; a
    folder that another process is training in is refused."""
    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Random seed of initial weights, data order and dropout."""
    precision: Precision = "float32"
    """dtype of matrix products; weights and moments stay float32."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    compile: bool = False
    """Whether to compile the model with torch.compile."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes: nothing, everything but matrix products and attention, or
    each block from its input."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = 3
    """Number of checkpoints to keep, not counting damaged ones; 0 keeps all."""
    log_every: int = 10
    """Steps between log lines; steps with a validation are logged too. metrics.csv has every
    step."""
    valid_every: int = 200
    """Steps between validations."""
    valid_batches: int = 20
    """Micro-batches in a validation, the same ones each time."""
    eval_every: int = 1000
    """Steps between evaluations on the benchmarks."""
    benchmarks: list[str] = field(default_factory=list)
    """JSON Lines files with multiple-choice questions to evaluate the model on during training."""
    num_questions: int = 200
    """Questions to sample from each benchmark, the same ones each time; 0 uses all."""
    report_to: ReportTo = "none"
    """Experiment tracker to log to besides TensorBoard and CSV: Weights & Biases, or trackio."""
    profile_steps: int = 0
    """Steps to record in trace.json.gz, after the first few; 0 records none."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do if the loss or the gradient norm is not finite: stop the run, or skip the step."""
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)

    def __post_init__(self) -> None:
        o = self.optimizer
        at_least = {
            "steps": 1, "seed": 0, "checkpoint_every": 1, "keep_last": 0, "log_every": 1,
            "valid_every": 1, "valid_batches": 1, "eval_every": 1, "num_questions": 0,
            "profile_steps": 0, "data.seq_len": 1, "data.micro_batch_size": 1,
            "data.num_workers": 0, "optimizer.gradient_accumulation_steps": 1,
            "parallel.replicate": 0, "parallel.shard": 1, "parallel.context": 1,
            "parallel.tensor": 1,
        }  # fmt: skip
        for name, minimum in at_least.items():
            section, _, option = name.rpartition(".")
            value = getattr(getattr(self, section) if section else self, option)
            if value < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, got {value!r}")
        for name, value, expected, ok in (
            ("lr", o.lr, "a positive number", o.lr > 0),
            ("max_grad_norm", o.max_grad_norm, "a positive number",
             o.max_grad_norm is None or o.max_grad_norm > 0),
            ("ema_decay", o.ema_decay, "0 < decay < 1",
             o.ema_decay is None or 0 < o.ema_decay < 1),
        ):  # fmt: skip
            if not ok:
                raise ValueError(f"optimizer.{name}: expected {expected}, got {value!r}")
        self.lr_schedule()  # checks its own fields

    def lr_schedule(self) -> LRSchedule:
        """The learning rate of each step, as a fraction of the peak.

        Raises:
            ValueError: `warmup_steps`, `min_lr_ratio` or `decay_ratio` is out of its range.
        """
        o = self.optimizer
        try:
            return LRSchedule(
                o.lr_schedule, self.steps, o.warmup_steps, o.min_lr_ratio, o.decay_ratio
            )
        except ValueError as error:
            raise ValueError(f"optimizer.{error}") from None
