"""A training run that can be killed at any moment and goes on as if it had not been.

Everything the next step depends on is in a checkpoint: weights, moments, the place in the data,
torch's random numbers, the step. A run of 2N steps, and one of N, killed, continued for N more, end
with the same bits on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_fast._device import device_of
from llama_fast._lock import hold
from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.data import Batch, PackedLoader, TokenShards
from llama_fast.data.loader import IGNORE
from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.models.checkpoints.training import Checkpoint, recorded_shape
from llama_fast.train.activation_checkpointing import checkpoint_activations
from llama_fast.train.benchmarks import BenchmarkScorer
from llama_fast.train.build import make_model, make_optimizer, new_shape
from llama_fast.train.checkpoints import CheckpointManager
from llama_fast.train.config import TrainConfig
from llama_fast.train.flops import attention_pairs
from llama_fast.train.metrics import StepMetrics
from llama_fast.train.out_of_memory import explain
from llama_fast.train.parallel import ParallelContext, clip_gradients
from llama_fast.train.resume import check_same
from llama_fast.train.run_logger import RunLogger


class TrainingRun:
    """A model, its data and its optimizer, in the state of the newest checkpoint if there is one.

    Args:
        config: what to do.
        log: called with a line of text at a time.

    Attributes:
        step: steps done.
        model, optimizer, loader, average: average is the weights' moving average, or None.

    Raises:
        FileNotFoundError, DataError: the data is not there, or damaged.
        CheckpointError: there are checkpoints and all are damaged.
        OSError: another process has a run in the folder.
        ValueError: the folder has a run of another configuration.
        MemoryError: the model and its optimizer do not fit; says which settings would help.

    Example:
        >>> TrainingRun(TrainConfig(out="run", steps=100, data=DataOptions(train="shards"))).train()
    """

    def __init__(self, config: TrainConfig, log: Callable[[str], object] = print) -> None:
        self.config, self.log, self.step = config, log, 0
        self.device = device_of(config.device)
        self.parallel = ParallelContext(config.parallel, self.device)
        if self.parallel.rank != 0:  # one voice is enough
            self.log = log = _silent
        if self.parallel.ranks > 1 and config.precision == "float16":
            raise ValueError("precision: expected float32 or bfloat16 on several processes")
        torch.manual_seed(config.seed)
        verify = config.data.verify and self.parallel.rank == 0
        self.shards = TokenShards(config.data.train, verify=verify)
        self.valid = None
        if config.data.valid is not None:
            self.valid = TokenShards(config.data.valid, verify=verify)
        if self.valid is not None and self.valid.vocab_size != self.shards.vocab_size:
            raise ValueError(
                f"data.valid: expected the vocabulary of data.train, {self.shards.vocab_size} "
                f"tokens, got {self.valid.vocab_size}"
            )
        self.lr_schedule = config.lr_schedule()
        if self.valid is not None:  # too little of it is said now, rather than after hours
            self._loader(self.valid, shuffle=False)
        self.loader = self._loader(self.shards, shuffle=True)
        shape = new_shape(config, self.shards.vocab_size)
        out = Path(config.out)
        self.checkpoints = CheckpointManager(
            out / "checkpoints", keep_last=config.keep_last, log=log
        )
        self.checkpoints.by_first_rank(lambda: hold(out))
        found = self.checkpoints.latest()
        if found is not None:
            shape = recorded_shape(found)
            check_same(found, config, self.parallel.ranks, log)
        try:
            self._build(shape, found)
        except (RuntimeError, OSError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(explain(error, config, shape, step=None)) from error

    def _build(self, shape: LlamaConfig | None, found: Checkpoint | None) -> None:
        """Make all that takes memory: new, or as it is in a checkpoint."""
        config = self.config

        def make() -> LLaMA:
            if found is None or shape is None:
                return make_model(config, self.shards.vocab_size)
            return LLaMA(shape)  # the checkpoint has its weights: init_from is not read again

        self.model = self.parallel.spread(make)
        checkpoint_activations(self.model, config.activation_checkpointing)
        if self.parallel.data_rank > 0:  # other rows, other dropout
            torch.manual_seed(config.seed + self.parallel.data_rank * 0x9E3779B9)
        self.optimizer = make_optimizer(self.model, config)
        self.average = None
        if config.optimizer.ema_decay is not None:
            self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.precision == "float16", init_scale=2.0**10
        )
        self._loss = self._loss_function()
        if found is not None:
            self._restore(found)

    def _loss_function(self) -> Callable[..., Tensor]:
        if self.config.compile and self.parallel.ranks > 1:
            for block in self.model.layers:  # between the hooks of FSDP
                block.compile()
        loss = self.parallel.loss_function(self.model)
        return torch.compile(loss) if self.config.compile and self.parallel.ranks == 1 else loss

    def _loader(self, shards: TokenShards, shuffle: bool) -> PackedLoader:
        data = self.config.data
        return PackedLoader(
            shards,
            seq_len=data.seq_len,
            batch_size=data.micro_batch_size,
            seed=self.config.seed,
            num_workers=data.num_workers if shuffle else 0,
            rank=self.parallel.data_rank,
            world_size=self.parallel.data_ranks,
            shuffle=shuffle,
        )

    def train(self, score_benchmarks: BenchmarkScorer | None = None) -> StepMetrics | None:
        """Go on to the last step; returns what that was, None if there was none left to do.

        Args:
            score_benchmarks: scores the model on the configuration's `benchmarks`, every
                `eval_every` steps and after the last one; ``llama-fast train`` takes that of
                :mod:`llama_fast.eval`.

        Raises:
            ValueError: `benchmarks` in the configuration, and nothing to score them.
            FloatingPointError: a loss or gradient is no finite number, and `on_nan` is "stop". The
                newest checkpoint is from before it.
            CheckpointError: a checkpoint could not be written. It is raised in the next step; the
                state after that step is written first, if there is room again.
            MemoryError: a step did not fit; says which settings would help.
        """
        config, last = self.config, None
        if config.benchmarks and score_benchmarks is None:
            raise ValueError("score_benchmarks: expected a scorer of config.benchmarks, got None")
        if self.step >= config.steps:
            self.log(f"step {self.step}: the run is complete")
            return None
        self.model.train()
        try:
            with RunLogger(self, score_benchmarks) as watch:
                while self.step < config.steps:
                    last = watch.measure(self._train_step)
                    due = self.step == config.steps
                    if self.valid is not None and (due or self.step % config.valid_every == 0):
                        last = dataclasses.replace(last, valid_loss=self.validate())
                    last = watch.add(last)
                    if due or self.step % config.checkpoint_every == 0 or self._save_failed():
                        watch.flush()
                        self.save()
        finally:
            self.checkpoints.wait()
        return last

    def _train_step(self) -> StepMetrics:
        begin = time.perf_counter()
        total, tokens, targets, pairs = self.make_gradients()
        lr = self.config.optimizer.lr * self.lr_schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        max_norm = self.config.optimizer.max_grad_norm
        norm = clip_gradients(
            list(self.model.parameters()), math.inf if max_norm is None else max_norm
        )
        # In float16 a gradient that overflows is expected now and then: the scaler leaves the step
        # out and scales less.
        if math.isfinite(total) and (math.isfinite(norm) or self.scaler.is_enabled()):
            self.scaler.step(self.optimizer)
        else:
            self._not_finite(total, norm)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        seconds = time.perf_counter() - begin
        return StepMetrics(self.step, tokens, targets, total, norm, lr, seconds, pairs=pairs)

    def make_gradients(self) -> tuple[float, int, int, int]:
        """Of the next step's loss, in the weights' `grad`, times the scaler's factor.

        Returns:
            loss, tokens, targets, and pairs of a query and a key it sees; of all processes.
        """
        count = self.config.optimizer.gradient_accumulation_steps
        batches = [next(self.loader) for _ in range(count)]
        # Divided by all targets of the step: the mean does not depend on how they are split up.
        tokens, targets, pairs = self._of_all_rows(
            sum(batch.tokens.shape[1] for batch in batches),
            sum(int((batch.targets != IGNORE).sum()) for batch in batches),
            sum(attention_pairs(batch.cu_seqlens) for batch in batches),
        )
        total = 0.0
        for batch in batches:
            with self.parallel.micro_batch(last=batch is batches[-1]):
                loss = self._loss_of(batch, z_loss=self.config.optimizer.z_loss) / max(1, targets)
                # The processes' gradients are averaged, and their sum is wanted.
                self.scaler.scale(loss * self.parallel.averaged).backward()
            total += loss.item()
        total = self.parallel.sum(total)[0] / self.config.parallel.tensor
        return total, tokens, targets, pairs

    def _of_all_rows(self, *numbers: int) -> list[int]:
        """Sums over the processes that have rows of their own."""
        inner = self.parallel.ranks // self.parallel.data_ranks
        return [round(total) // inner for total in self.parallel.sum(*numbers)]

    def _loss_of(self, batch: Batch, **options: Any) -> Tensor:
        """Sum over the targets of a batch."""
        tokens, targets, offsets = (t.to(self.device, non_blocking=True) for t in batch)
        with self._precision():
            loss: Tensor = self._loss(
                tokens, targets, cu_seqlens=offsets, reduction="sum", **options
            )
        return loss

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        # Each weight is used once: to keep its copy for a second use would only take memory, with
        # FSDP that of the whole model on each process.
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype, cache_enabled=False)

    def _not_finite(self, loss: float, norm: float) -> None:
        what = f"loss {loss}, gradient norm {norm} in step {self.step + 1}"
        if self.config.on_nan == "skip":
            self.log(f"{what}: step left out")
            return
        raise FloatingPointError(
            f"{what}: expected finite numbers; checkpoints are from before it (--on_nan skip "
            "leaves such steps out; a lower learning rate may avoid them)"
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.config.optimizer.ema_decay is None:
            return
        for name, weight in self.model.named_parameters():
            self.average[name].lerp_(weight, 1 - self.config.optimizer.ema_decay)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss in nats per token over the first `valid_batches` of the validation data."""
        if self.valid is None:
            raise ValueError("data.valid: expected a folder with shards, got None")
        loader, total, targets = self._loader(self.valid, shuffle=False), 0.0, 0
        self.model.eval()
        try:
            max_sequences = self.config.valid_batches * self.config.data.micro_batch_size
            while (
                loader.position.epoch == 0
                and loader.batches_left()
                and loader.position.sequence < max_sequences
            ):
                batch = next(loader)
                total += self._loss_of(batch).item()
                targets += int((batch.targets != IGNORE).sum())
        finally:
            self.model.train()
            self.parallel.after_forward_alone(self.model)
        total = self.parallel.sum(total)[0] / self.config.parallel.tensor
        return total / max(1, *self._of_all_rows(targets))

    def _save_failed(self) -> bool:
        """Whether the save in the background has failed; on every process the same."""
        if not self.checkpoints.pending:
            return False
        is_writing = self.checkpoints.is_writing  # first: what fails in between is seen next time
        writing, failed = self.parallel.sum(is_writing, self.checkpoints.has_failed)
        if not writing and not failed:
            self.checkpoints.wait()  # not at all: then no process asks again until the next save
        return not writing and failed > 0

    def save(self) -> None:
        """Write a checkpoint in the background.

        Raises:
            CheckpointError: the one before could not be written. This one was, if that was possible
                again, before this is raised.
        """
        state = {
            "step": self.step,
            "config": dataclasses.asdict(self.config),
            "model": dataclasses.asdict(self.model.config),
            "loader": self.loader.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": self.parallel.ranks,
            "device": self.device.type,
        }
        self.checkpoints.save(self.step, dict(self._tensors()), state, asynchronous=True)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor the next step depends on, by name; to be saved, or to be filled."""
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

    def _restore(self, found: Checkpoint) -> None:
        tensors = {name: tensor.detach() for name, tensor in self._tensors()}
        random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random.")}
        if self.parallel.rank < found.state["ranks"]:  # else drawn anew: there are more processes
            saved = ("random.cpu.", f"random.{found.state['device']}.")  # of another device as well
            tensors.update({name: t for name, t in random.items() if name.startswith(saved)})
        self.checkpoints.load(found, tensors)
        rank = self.parallel.rank
        torch.set_rng_state(random[f"random.cpu.{rank}"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random[f"random.cuda.{rank}"], self.device)
        self.loader.load_state_dict(found.state["loader"])
        self.scaler.load_state_dict(found.state["scaler"])
        self.step = found.step
        self.log(f"step {self.step}: going on from {found.path}")


def _silent(line: str) -> None:
    pass
