"""What a training run is told: every field is an option of `llama-fast train` and a key in YAML.

The strings below the fields are their documentation: `llama-fast train --help` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llama_fast.train.schedules import Schedule
from llama_fast.train.trackers import ReportTo

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass
class ModelOptions:
    """Which model is trained, and from which weights."""

    preset: str = "debug"
    """A published model's shape (`llama3-8b`, `smollm2-135m`, ...), or `debug`."""
    init_from: str | None = None
    """Weights to begin with (Hugging Face folder, GGUF, Meta, llama2.c); None draws new ones. A run
    that goes on does not read them again."""
    changes: dict[str, int | float | bool] = field(default_factory=dict)
    """Fields of the preset to replace, such as `{num_layers: 4}`; `vocab_size` follows the data."""


@dataclass
class DataOptions:
    """Token shards, written by `llama-fast tokenize`."""

    train: str = "shards"
    """Folder with the shards to learn from."""
    valid: str | None = None
    """Folder with the shards to validate on."""
    seq_len: int = 256
    """Longest sequence in tokens; a row of this many is packed with whole documents."""
    rows: int = 8
    """Rows of a micro-batch, on each rank."""
    workers: int = 0
    """Processes that read ahead. The batches do not depend on their number."""
    verify: bool = True
    """Whether all shards are read and compared with their hashes before the run begins."""


@dataclass
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and what surrounds it."""

    lr: float = 1e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """On matrices; norms are left alone."""
    clip: float | None = 1.0
    """Largest norm of the gradient; None does not clip."""
    accumulate: int = 1
    """Micro-batches of a step."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator (PaLM, arXiv:2204.02311)."""
    ema: float | None = None
    """Decay of a moving average of the weights, kept beside them; None keeps none."""
    warmup: int = 0
    """Steps of a linear warm-up."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """What comes after the warm-up; `wsd` stays at the peak and decays at the end."""
    final_lr: float = 0.1
    """Learning rate at the end of the run, as a share of the peak."""
    decay: float = 0.2
    """Share of the run that `wsd` decays."""


@dataclass
class ParallelOptions:
    """How the processes that `torchrun` starts share the work; their number is the product."""

    replicate: int = 0
    """Copies of the model, each with its share of the rows (DDP; beside `shard` HSDP). 0: as many
    as there are processes for."""
    shard: int = 1
    """Processes that share weights, gradients and moments out, each with its rows (FSDP2)."""
    context: int = 1
    """Processes that share the tokens of each row out (ring attention)."""
    tensor: int = 1
    """Processes that share out heads, feed-forward width and vocabulary (tensor parallelism)."""


@dataclass
class TrainConfig:
    """A training run."""

    out: str = "run"
    """Folder of the run: checkpoints, metrics, the configuration. An existing one goes on; one that
    another process runs in is refused."""
    steps: int = 1000
    """Steps of the optimizer."""
    seed: int = 0
    """Of the weights, the order of the data, and dropout."""
    precision: Precision = "float32"
    """What matrix products are computed in; weights and moments stay float32."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    compile: bool = False
    """Whether the model goes through torch.compile."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, all but products and
    attention, or all but the input of each block."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step always makes one."""
    keep: int = 3
    """Checkpoints kept, damaged ones not counted; 0 keeps all."""
    log_every: int = 10
    """Steps between two lines of output; a validation has one too. Every step is in metrics.csv."""
    valid_every: int = 200
    """Steps between validations."""
    valid_batches: int = 20
    """Micro-batches of a validation, always the same ones."""
    eval_every: int = 1000
    """Steps between two rounds of the benchmarks' questions."""
    benchmarks: list[str] = field(default_factory=list)
    """Files of multiple-choice questions (JSON Lines) that the model is asked while it trains."""
    questions: int = 200
    """Questions of each benchmark, always the same ones; 0 asks all."""
    report_to: ReportTo = "none"
    """Where curves go beside TensorBoard and CSV: Weights & Biases, or trackio."""
    profile: int = 0
    """Steps that trace.json.gz records, after the first ones; 0 records none."""
    on_nan: Literal["stop", "skip"] = "stop"
    """After a loss or gradient that is no finite number: end the run, or leave this step out."""
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)

    def __post_init__(self) -> None:
        o, p = self.optimizer, self.parallel
        for name, value, expected, ok in (
            ("steps", self.steps, "at least 1", self.steps >= 1),
            ("seed", self.seed, "a number >= 0", self.seed >= 0),
            ("checkpoint_every", self.checkpoint_every, ">= 1", self.checkpoint_every >= 1),
            ("log_every", self.log_every, "at least 1", self.log_every >= 1),
            ("valid_every", self.valid_every, "at least 1", self.valid_every >= 1),
            ("valid_batches", self.valid_batches, "at least 1", self.valid_batches >= 1),
            ("eval_every", self.eval_every, "at least 1", self.eval_every >= 1),
            ("questions", self.questions, "a number >= 0", self.questions >= 0),
            ("profile", self.profile, "a number >= 0", self.profile >= 0),
            ("data.seq_len", self.data.seq_len, "at least 1", self.data.seq_len >= 1),
            ("parallel.replicate", p.replicate, "at least 0", p.replicate >= 0),
            ("parallel.shard", p.shard, "at least 1", p.shard >= 1),
            ("parallel.context", p.context, "at least 1", p.context >= 1),
            ("parallel.tensor", p.tensor, "at least 1", p.tensor >= 1),
            ("optimizer.lr", o.lr, "a positive number", o.lr > 0),
            ("optimizer.accumulate", o.accumulate, "at least 1", o.accumulate >= 1),
            ("optimizer.clip", o.clip, "a positive number", o.clip is None or o.clip > 0),
            ("optimizer.ema", o.ema, "0 < decay < 1", o.ema is None or 0 < o.ema < 1),
        ):
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {value!r}")
        self.schedule()  # checks its own fields

    def schedule(self) -> Schedule:
        """Factor on the learning rate of each step."""
        o = self.optimizer
        return Schedule(o.schedule, self.steps, o.warmup, o.final_lr, o.decay)
