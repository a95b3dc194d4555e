"""The training loops that `train_loop` compares: ours, our bare step, litgpt's, transformers'.

Each runs in its own process. All start from the same weights and use the same batches and the same
AdamW, so their loss curves must be the same. A loop runs as its library implements it, except that
:class:`Turns` pauses it between two steps until the next one is requested.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from llama_fast._memory import peak_rss, reset_peak_rss, rss
from llama_fast.data import Batch, PackedLoader, TokenShards
from llama_fast.models import load
from llama_fast.models.checkpoints.huggingface import read_config
from llama_fast.train.allocator import keep_memory
from llama_fast.train.build import make_optimizer
from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun

from .child import Questions

FOREVER = 1_000_000  # steps; the benchmark ends the process long before
OPTIMIZER = OptimizerOptions(lr=3e-4, weight_decay=0.0, max_grad_norm=1.0, lr_schedule="constant")


@dataclass
class Task:
    """The training that every loop does.

    Attributes:
        folder: has `weights` (Hugging Face format) and `shards`; logs are written to it.
        rows, length: sequences in a batch, and tokens in a sequence.
        precision: "float32", or "bfloat16": matrix products in torch.autocast, with weights,
            gradients and moments in float32, the mixed precision of all three libraries.
        threads: number of torch's threads.
    """

    folder: str
    rows: int
    length: int
    precision: str
    threads: int

    def config(self) -> TrainConfig:
        """The configuration for `llama-fast train`."""
        folder = Path(self.folder)
        return TrainConfig(
            out=str(folder / f"run-{os.getpid()}"),
            steps=FOREVER,
            checkpoint_every=FOREVER,
            log_every=1,
            precision=self.precision,  # type: ignore[arg-type]
            model=ModelOptions(init_from=str(folder / "weights")),
            data=DataOptions(
                str(folder / "shards"), seq_len=self.length, micro_batch_size=self.rows
            ),
            optimizer=OPTIMIZER,
        )

    def batches(self) -> PackedLoader:
        """The batches of `llama-fast train`."""
        shards = TokenShards(Path(self.folder) / "shards")
        return PackedLoader(shards, seq_len=self.length, batch_size=self.rows, seed=0)

    def sequences(self, batch: Batch) -> Tensor:
        """(rows, length + 1) int64: the documents of a batch, one per sequence."""
        tokens = batch.tokens.view(self.rows, self.length)
        last = batch.targets.view(self.rows, self.length)[:, -1:]
        return torch.cat([tokens, last], dim=1)


class Turns:
    """Pauses a loop between two steps, and answers how long the last step took.

    Attributes:
        loss: loss of the last step; set by the loop.
    """

    def __init__(self) -> None:
        self.loss: Tensor | float | None = None
        self._questions = Questions()
        self._libraries = rss()
        self._begin = 0.0

    def imported(self) -> None:
        """To be called after the imports; later memory counts as that of model and loop."""
        self._libraries = rss()

    def __call__(self) -> None:
        """Pause; to be called between two steps.

        Raises:
            SystemExit: no more steps are requested.
        """
        if self._begin and self.loss is None:  # the loop prefetches a batch
            return
        if self._begin:
            loss = float(self.loss)  # type: ignore[arg-type]
            ms = 1e3 * (time.perf_counter() - self._begin)
            self._questions.answer({"ms": ms, "loss": loss})
            self.loss = None
        while (question := self._questions.next()) is not None:
            if question == {"memory": "reset"}:
                self._questions.answer({"reset": reset_peak_rss()})
            elif question == {"memory": "read"}:
                peak = peak_rss()
                self._questions.answer({"peak": peak, "libraries": self._libraries})
            else:
                self._begin = time.perf_counter()
                return
        raise SystemExit


def bare(task: Task, turns: Turns) -> None:
    """Loss and backward pass of our model, and AdamW, on batches in memory."""
    turns.imported()
    keep_memory()
    model, _ = load(Path(task.folder) / "weights", dtype=torch.float32)
    model.train()
    optimizer = make_optimizer(model, task.config())
    for batch in task.batches():
        turns()  # the batch is in memory before the step begins
        rows = [t.view(task.rows, task.length) for t in (batch.tokens, batch.targets)]
        with autocast(task.precision):
            loss = model.loss(*rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.loss = loss.item()


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    """torch's context for a precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", getattr(torch, precision))


class _PausedRun(TrainingRun):
    """A run that is paused before each step."""

    turns: Turns

    def _train_step(self) -> Any:
        self.turns()
        step = super()._train_step()
        self.turns.loss = step.loss
        return step


def llama_fast(task: Task, turns: Turns) -> None:
    """`llama-fast train`: shards, packing, step, clipping, metrics.csv, TensorBoard, output."""
    import tensorboard  # noqa: F401  (otherwise its import would count as memory of the run)

    turns.imported()
    keep_memory()  # as the command does
    run = _PausedRun(task.config())
    run.turns = turns
    run.train()


class Sequences(IterableDataset[Any]):
    """Sequences of length + 1 tokens; pauses before each batch.

    Args:
        task: the task, which provides the batches.
        turns: pauses the loop; None for no pauses.
        convert: function to apply to each sequence.
    """

    def __init__(
        self, task: Task, turns: Turns | None, convert: Callable[[Tensor], Any] = lambda row: row
    ) -> None:
        self.task, self.turns, self.convert = task, turns, convert

    def __iter__(self) -> Iterator[Any]:
        for batch in self.task.batches():
            if self.turns is not None:
                self.turns()
            yield from map(self.convert, self.task.sequences(batch))


def litgpt(task: Task, turns: Turns) -> None:
    """litgpt's `pretrain.setup`: torch.compile, its loss in chunks of 128 tokens, TensorBoard."""
    import litgpt.pretrain as pretrain
    import tensorboard  # noqa: F401
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule

    importlib.import_module(
        "torch._inductor.compile_fx"
    )  # otherwise it would count as memory of the loop
    folder = Path(task.folder)
    config = _litgpt_weights(folder, task.length)
    turns.imported()

    class Data(DataModule):
        def connect(self, **_: Any) -> None:
            pass

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Sequences(task, turns), batch_size=task.rows)

        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Sequences(task, None), batch_size=task.rows)

    step_loss = pretrain.chunked_cross_entropy

    def observed(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        loss: Tensor = step_loss(logits, targets, **options)
        if loss.requires_grad:
            turns.loss = loss.detach()
        return loss

    pretrain.chunked_cross_entropy = observed
    pretrain.setup(
        "",
        model_config=config,
        out_dir=folder / f"litgpt-{os.getpid()}",
        precision="32-true" if task.precision == "float32" else "bf16-mixed",
        initial_checkpoint_dir=folder,
        data=Data(),
        train=TrainArgs(
            save_interval=None,
            global_batch_size=task.rows,
            micro_batch_size=task.rows,
            max_tokens=FOREVER * task.rows * task.length,
            max_norm=OPTIMIZER.max_grad_norm,
            min_lr=OPTIMIZER.lr,
            lr_warmup_steps=0,
        ),
        eval=EvalArgs(interval=FOREVER, max_iters=1),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": OPTIMIZER.lr,
                "betas": (OPTIMIZER.beta1, OPTIMIZER.beta2),
                "eps": OPTIMIZER.eps,
                "weight_decay": OPTIMIZER.weight_decay,
            },
        },
        devices=1,
    )


def _litgpt_weights(folder: Path, length: int) -> Any:
    """Convert `weights` to litgpt's lit_model.pth in the same folder; return its `Config`."""
    import safetensors.torch
    from litgpt.config import Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    shape = read_config(folder / "weights" / "config.json")
    config = Config(
        name="llama",
        block_size=length,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_query_groups=shape.num_kv_heads,
        n_embd=shape.embed_dim,
        head_size=shape.head_dim,
        intermediate_size=shape.ffn_dim,
        rotary_percentage=1.0,
        rope_base=int(shape.rope_theta),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
    )
    weights = safetensors.torch.load_file(folder / "weights" / "model.safetensors")
    state: dict[str, Tensor] = {}
    copy_weights_hf_llama(config, {}, state, weights)
    torch.save(state, folder / "lit_model.pth")
    return config


def transformers(task: Task, turns: Turns) -> None:
    """`Trainer` with LlamaForCausalLM, eager with SDPA, fused AdamW, TensorBoard."""
    import tensorboard  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments

    turns.imported()
    model = LlamaForCausalLM.from_pretrained(
        Path(task.folder) / "weights", dtype=torch.float32, use_cache=False
    )

    class Observed(Trainer):
        def training_step(self, *args: Any, **options: Any) -> Tensor:
            loss: Tensor = super().training_step(*args, **options)
            turns.loss = loss.detach()
            return loss

    def to_example(row: Tensor) -> dict[str, Tensor]:
        # With `labels` alone it would compute and drop the logits of the last token.
        return {"input_ids": row[:-1], "labels": row, "shift_labels": row[1:]}

    arguments = TrainingArguments(
        output_dir=str(Path(task.folder) / f"trainer-{os.getpid()}"),
        per_device_train_batch_size=task.rows,
        max_steps=FOREVER,
        learning_rate=OPTIMIZER.lr,
        lr_scheduler_type="constant",
        weight_decay=OPTIMIZER.weight_decay,
        adam_beta1=OPTIMIZER.beta1,
        adam_beta2=OPTIMIZER.beta2,
        adam_epsilon=OPTIMIZER.eps,
        max_grad_norm=OPTIMIZER.max_grad_norm or 0.0,
        bf16=task.precision == "bfloat16",
        use_cpu=True,
        logging_steps=1,
        report_to=["tensorboard"],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Observed(model, arguments, train_dataset=Sequences(task, turns, to_example)).train()


SIDES: dict[str, Callable[[Task, Turns], None]] = {
    "bare step": bare,
    "llama_fast": llama_fast,
    "litgpt": litgpt,
    "transformers": transformers,
}


def serve(settings: dict[str, Any]) -> None:
    """Run a loop in this process, one step per request; see :class:`Turns`."""
    task = Task(**{field.name: settings[field.name] for field in dataclasses.fields(Task)})
    torch.set_num_threads(task.threads)
    SIDES[settings["side"]](task, Turns())
