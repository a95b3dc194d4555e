"""A training run that can be killed at any moment and resumed with identical results.

A checkpoint contains everything that the next step depends on: weights, moments, the position in
the data, torch's random state, and the step. On a CPU, a run of 2N steps and a run that is killed
after N steps and resumed for N more end with bitwise identical weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama_fast._device import device_of
from llama_fast._lock import hold
from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.data import Batch, PackedLoader, TokenShards
from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.models.checkpoints.training import Checkpoint, recorded_shape
from llama_fast.models.uninitialized import uninitialized
from llama_fast.train.activation_checkpointing import checkpoint_activations
from llama_fast.train.benchmarks import BenchmarkScore, BenchmarkScorer
from llama_fast.train.build import make_model, make_optimizer, new_shape
from llama_fast.train.checkpoints import CheckpointManager
from llama_fast.train.config import TrainConfig
from llama_fast.train.flops import attention_pairs
from llama_fast.train.metrics import StepMetrics, read_scalars
from llama_fast.train.out_of_memory import explain
from llama_fast.train.parallel import ParallelContext, clip_gradients, gradient_norm
from llama_fast.train.resume import check_same
from llama_fast.train.run_logger import RunLogger
from llama_fast.train.stop_signals import StopSignals, TrainingStopped


class StepTotals(NamedTuple):
    """Sums over the micro-batches of an optimizer step.

    Attributes:
        loss: 0-dim float64 on the device, this process's part of the mean loss in nats per target.
        tokens, targets, pairs: numbers of tokens, targets and query-key pairs, on all processes.
    """

    loss: Tensor
    tokens: int
    targets: int
    pairs: int


class TrainingRun:
    """A model, its optimizer and its data, restored from the newest checkpoint if there is one.

    Args:
        config: the run's configuration.
        log: called with each line of output, on rank 0 only.

    Attributes:
        step: number of steps done.
        model, optimizer, loader: model, optimizer and training data of the run.
        average: name -> exponential moving average of the weight, or None.

    Raises:
        FileNotFoundError, DataError: the data does not exist, or is damaged.
        RunCheckpointError: all checkpoints in the folder are damaged.
        OSError: another process is training in the folder.
        ValueError: the folder has a run with another configuration.
        MemoryError: model and optimizer do not fit; the message names settings that would help.

    Example:
        >>> TrainingRun(TrainConfig(out="run", steps=100, data=DataOptions(train="shards"))).train()
    """

    def __init__(self, config: TrainConfig, log: Callable[[str], object] = print) -> None:
        self.config, self.step = config, 0
        self.device = device_of(config.device)
        self.parallel = ParallelContext(config.parallel, self.device)
        self.log = log = log if self.parallel.rank == 0 else _discard
        self._stop = StopSignals(log, only_process=self.parallel.world_size == 1)
        self._others_stop = False
        self._saved_step: int | None = None
        if self.parallel.world_size > 1 and config.precision == "float16":
            raise ValueError("precision: expected float32 or bfloat16 on several processes")
        torch.manual_seed(config.seed)
        verify = config.data.verify and self.parallel.rank == 0
        self.shards = _shards("data.train", config.data.train, verify)
        self.valid = None
        if config.data.valid is not None:
            self.valid = _shards("data.valid", config.data.valid, verify)
        if self.valid is not None and self.valid.vocab_size != self.shards.vocab_size:
            raise ValueError(
                f"data.valid: expected the vocabulary of data.train, {self.shards.vocab_size} "
                f"tokens, got {self.valid.vocab_size}"
            )
        self.lr_schedule = config.lr_schedule()
        if self.valid is not None:  # fail now, not at the first validation, if it is too small
            self._loader(self.valid, shuffle=False)
        self.loader = self._loader(self.shards, shuffle=True)
        shape = new_shape(config, self.shards.vocab_size)
        out = Path(config.out)
        self.checkpoints = CheckpointManager(
            out / "checkpoints", keep_last=config.keep_last, log=log
        )
        self.checkpoints.on_first_rank(lambda: hold(out))
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            shape = recorded_shape(checkpoint)
            check_same(checkpoint, config, self.parallel.world_size, log)
        try:
            self._build(shape, checkpoint)
        except (RuntimeError, OSError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(explain(error, config, shape, step=None)) from error

    def _build(self, shape: LlamaConfig | None, checkpoint: Checkpoint | None) -> None:
        """Create model, optimizer and data, and load the checkpoint."""
        config = self.config

        def make() -> LLaMA:
            if checkpoint is None or shape is None:
                return make_model(config, self.shards.vocab_size)
            return uninitialized(shape)  # the checkpoint has them: init_from is not read again

        self.model = self.parallel.parallelize(make)
        checkpoint_activations(self.model, config.activation_checkpointing)
        if self.parallel.data_rank > 0:  # dropout differs between ranks with different data
            torch.manual_seed(config.seed + self.parallel.data_rank * 0x9E3779B9)
        self.optimizer = make_optimizer(self.model, config)
        self.average = None
        if config.optimizer.ema_decay is not None:
            self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.precision == "float16", init_scale=2.0**10
        )
        self._loss = self._loss_function()
        if checkpoint is not None:
            self._restore(checkpoint)

    def _loss_function(self) -> Callable[..., Tensor]:
        is_distributed = self.parallel.world_size > 1
        if self.config.compile and is_distributed:
            for block in self.model.layers:  # one at a time, between the hooks of FSDP
                block.compile()
        loss = self.parallel.loss_function(self.model)
        return torch.compile(loss) if self.config.compile and not is_distributed else loss

    def _loader(self, shards: TokenShards, shuffle: bool) -> PackedLoader:
        data = self.config.data
        return PackedLoader(
            shards,
            seq_len=data.seq_len,
            batch_size=data.micro_batch_size,
            seed=self.config.seed,
            num_workers=data.num_workers if shuffle else 0,
            rank=self.parallel.data_rank,
            world_size=self.parallel.data_world_size,
            shuffle=shuffle,
        )

    def train(self, score_benchmarks: BenchmarkScorer | None = None) -> StepMetrics | None:
        """Train up to the last step.

        Args:
            score_benchmarks: scores the model on the benchmarks of the configuration; called every
                `eval_every` steps and after the last one. ``llama-fast train`` passes the scorer of
                :mod:`llama_fast.eval`.

        Returns:
            The metrics of the last step; None if the run was already complete.

        Raises:
            ValueError: the configuration has `benchmarks`, but `score_benchmarks` is None.
            FloatingPointError: the loss or the gradient norm is not finite, and `on_nan` is "stop".
                The newest checkpoint is from before that step.
            RunCheckpointError: a checkpoint could not be written. It is raised after the next step,
                whose state is saved first if there is space again.
            MemoryError: a step did not fit in memory; the message names settings that would help.
            TrainingStopped: SIGINT or SIGTERM arrived. The run ends with its step, whose checkpoint
                is written before this is raised.
        """
        config, metrics = self.config, None
        if config.benchmarks and score_benchmarks is None:
            raise ValueError("score_benchmarks: expected a scorer of config.benchmarks, got None")
        if self.step >= config.steps:
            self.log(f"step {self.step}: the run is complete")
            return None
        scorer = score_benchmarks if config.benchmarks else None
        self.model.train()
        logger = RunLogger(
            config, self.model.config, self.shards, self.valid, self.parallel, self.step, self.log
        )
        with self._stop:
            try:
                with logger:
                    while self.step < config.steps and not self._is_stopping:
                        metrics = self._step_and_save(logger, scorer)
                    if self._is_stopping and self._saved_step != self.step:
                        logger.flush()
                        self.save()  # the signal arrived after the step's end
            finally:
                self.checkpoints.wait()
            if self._is_stopping and self.step < config.steps:
                self.log(f"saved at step {self.step}; the same command goes on")
                received = self._stop.received or signal.SIGTERM  # of another process
                raise TrainingStopped(received, self.step)
        return metrics

    def _step_and_save(self, logger: RunLogger, scorer: BenchmarkScorer | None) -> StepMetrics:
        """Do a step and what is due after it: validation, benchmarks, a checkpoint."""
        config = self.config
        metrics = logger.measure(self._train_step)
        is_last = self.step == config.steps
        if self.valid is not None and (is_last or self.step % config.valid_every == 0):
            losses: list[float] = []
            if self._finishes(lambda: losses.append(self.validate()), "validation"):
                metrics = dataclasses.replace(metrics, valid_loss=losses[0])
        if scorer is not None and (is_last or self.step % config.eval_every == 0):
            model = self.parallel.full_model(self.model)
            scores: list[BenchmarkScore] = []
            if model is not None and self._finishes(
                lambda: scores.extend(scorer(model, self.step)), "benchmarks"
            ):
                logger.add_scores(scores)
        metrics = logger.add(metrics)
        is_due = is_last or self.step % config.checkpoint_every == 0 or self._is_stopping
        if is_due or self._save_failed():
            logger.flush()
            self.save()
        return metrics

    @property
    def _is_stopping(self) -> bool:
        """Whether the run is to end after this step; the same on every process."""
        if self.parallel.world_size == 1:
            return self._stop.received is not None
        return self._others_stop

    def _finishes(self, work: Callable[[], object], name: str) -> bool:
        """See :meth:`StopSignals.finishes`; logs what is not finished."""
        is_finished = not self._is_stopping and self._stop.finishes(work)
        if not is_finished:
            self.log(f"step {self.step}: {name} not finished, because the run is to stop")
        return is_finished

    def _train_step(self) -> StepMetrics:
        start, config = time.perf_counter(), self.config.optimizer
        totals = self.accumulate_gradients()
        lr = config.lr * self.lr_schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        weights = list(self.model.parameters())
        norm = gradient_norm(weights)
        # This is the only point in a step where the host waits for the device.
        local_loss, grad_norm = read_scalars(totals.loss, norm)
        loss, stops = self.parallel.sum(local_loss, self._stop.received is not None)
        loss, self._others_stop = loss / self.config.parallel.tensor, stops > 0
        if config.max_grad_norm is not None and not grad_norm <= config.max_grad_norm - 1e-5:
            clip_gradients(weights, config.max_grad_norm, norm)
        # In float16 the gradient overflows occasionally: the scaler then skips the step and lowers
        # its scale.
        if math.isfinite(loss) and (math.isfinite(grad_norm) or self.scaler.is_enabled()):
            self.scaler.step(self.optimizer)
        else:
            self._not_finite(loss, grad_norm)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        seconds = time.perf_counter() - start
        return StepMetrics(self.step, totals.tokens, totals.targets, loss, grad_norm, lr, seconds,
                           pairs=totals.pairs)  # fmt: skip

    def accumulate_gradients(self) -> StepTotals:
        """Run the micro-batches of the next step; gradients accumulate in the weights' `grad`.

        The gradients are those of the mean loss, times the scaler's factor. The host does not wait
        for the device.
        """
        count = self.config.optimizer.gradient_accumulation_steps
        batches = [next(self.loader) for _ in range(count)]
        tokens, targets, pairs = self._sum_over_data(
            sum(batch.tokens.shape[1] for batch in batches),
            sum(batch.num_targets for batch in batches),
            sum(attention_pairs(batch.cu_seqlens) for batch in batches),
        )
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            with self.parallel.micro_batch(is_last=batch is batches[-1]):
                # Divided by the targets of the whole step: the result does not depend on how they
                # are split into micro-batches.
                loss = self._sum_of_losses(batch, z_loss=self.config.optimizer.z_loss)
                loss = loss / max(1, targets)
                # The engines average the gradients over processes; their sum is needed.
                self.scaler.scale(loss * self.parallel.averaged).backward()
            total += loss.detach()
        return StepTotals(total, tokens, targets, pairs)

    def mean_loss(self, local: float) -> float:
        """The mean loss of a step, from this process's :attr:`StepTotals.loss`."""
        return self.parallel.sum(local)[0] / self.config.parallel.tensor

    def _sum_over_data(self, *counts: int) -> list[int]:
        """Sums over the data-parallel ranks."""
        copies = self.parallel.world_size // self.parallel.data_world_size
        return [round(total) // copies for total in self.parallel.sum(*counts)]

    def _sum_of_losses(self, batch: Batch, **options: Any) -> Tensor:
        """Sum of the losses over the targets of a batch."""
        tokens, targets, offsets = (t.to(self.device, non_blocking=True) for t in batch)
        with self._autocast():
            loss: Tensor = self._loss(
                tokens, targets, cu_seqlens=offsets, reduction="sum", **options
            )
        return loss

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        # Each weight is used once, so caching its cast would only take memory: with FSDP, that of
        # the whole model on each process.
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype, cache_enabled=False)

    def _not_finite(self, loss: float, norm: float) -> None:
        what = f"loss {loss}, gradient norm {norm} in step {self.step + 1}"
        if self.config.on_nan == "skip":
            self.log(f"{what}: step skipped")
            return
        raise FloatingPointError(
            f"{what}: expected finite numbers; the checkpoints are from before it (--on-nan skip "
            "skips such steps; a lower learning rate may avoid them)"
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.config.optimizer.ema_decay is None:
            return
        for name, weight in self.model.named_parameters():
            self.average[name].lerp_(weight, 1 - self.config.optimizer.ema_decay)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss in nats per target over the first `valid_batches` of the validation data.

        Raises:
            ValueError: the run has no validation data.
        """
        if self.valid is None:
            raise ValueError("data.valid: expected a folder with shards, got None")
        loader, targets = self._loader(self.valid, shuffle=False), 0
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        max_sequences = self.config.valid_batches * self.config.data.micro_batch_size
        self.model.eval()
        try:
            while (
                loader.position.epoch == 0
                and loader.batches_left()
                and loader.position.sequence < max_sequences
            ):
                batch = next(loader)
                total += self._sum_of_losses(batch)
                targets += batch.num_targets
        finally:
            self.model.train()
            self.parallel.reshard(self.model)
        return self.mean_loss(total.item()) / max(1, *self._sum_over_data(targets))

    def _save_failed(self) -> bool:
        """Whether the save in the background has failed; the same on every process."""
        if not self.checkpoints.pending:
            return False
        is_writing = self.checkpoints.is_writing  # first: a later failure is noticed next time
        writing, failed = self.parallel.sum(is_writing, self.checkpoints.has_failed)
        if not writing and not failed:
            self.checkpoints.wait()  # returns at once; nothing is pending until the next save
        return not writing and failed > 0

    def save(self) -> None:
        """Write a checkpoint in the background.

        Raises:
            RunCheckpointError: the previous checkpoint could not be written. This one was written
                first, if that was possible.
        """
        state = {
            "step": self.step,
            "config": dataclasses.asdict(self.config),
            "model": dataclasses.asdict(self.model.config),
            "loader": self.loader.state_dict(),
            "scaler": self.scaler.state_dict(),
            "world_size": self.parallel.world_size,
            "device": self.device.type,
        }
        self._saved_step = self.step
        self.checkpoints.save(self.step, dict(self._tensors()), state, asynchronous=True)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that the next step depends on, by name."""
        for name, weight in self.model.named_parameters():
            yield f"model.{name}", weight
            state = self.optimizer.state[weight]
            if not state:  # before the first step
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            for part, tensor in state.items():
                yield f"optimizer.{part}.{name}", tensor
            if self.average is not None:
                yield f"average.{name}", self.average[name]
        rank = self.parallel.rank
        yield f"random.cpu.{rank}", torch.get_rng_state()
        if self.device.type == "cuda":
            yield f"random.cuda.{rank}", torch.cuda.get_rng_state(self.device)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, rank = checkpoint.state, self.parallel.rank
        tensors = {name: tensor.detach() for name, tensor in self._tensors()}
        random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random.")}
        if rank < state["world_size"]:  # a rank that is new keeps its fresh random state
            saved = ("random.cpu.", f"random.{state['device']}.")  # the device may differ now
            tensors.update({name: t for name, t in random.items() if name.startswith(saved)})
        self.checkpoints.load(checkpoint, tensors)
        torch.set_rng_state(random[f"random.cpu.{rank}"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random[f"random.cuda.{rank}"], self.device)
        self.loader.load_state_dict(state["loader"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = self._saved_step = checkpoint.step
        self.log(f"step {self.step}: resuming from {checkpoint.path}")


def _discard(line: str) -> None:
    """Log nothing."""


def _shards(option: str, folder: str, verify: bool) -> TokenShards:
    """Open the shards that an option names."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{option}: no such folder: {folder}")
    return TokenShards(folder, verify=verify)
