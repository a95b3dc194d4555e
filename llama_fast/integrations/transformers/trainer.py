"""The kernels in a model while transformers' Trainer, or one made from it, trains it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from llama_fast.integrations.patch import patch, unpatch
from llama_fast.integrations.report import Report


class PatchCallback(TrainerCallback):
    """Patches the model when training begins and takes the kernels out when it ends.

        Trainer(model=model, ..., callbacks=[llama_fast.PatchCallback()])

    For TRL's trainers too. A model that was patched before (``llama_fast.patch(model)``) needs no
    callback. An exception in training leaves the model patched: ``llama_fast.unpatch(model)``;
    ``with llama_fast.patch(model): trainer.train()`` takes the kernels out then, too.

    Args:
        **parts: the options of :func:`llama_fast.patch`.

    Attributes:
        report: what was replaced and what was left; None before training.

    Raises:
        TypeError: an option is no bool, or unknown.
        ValueError: when training begins on several GPUs in one process, where Trainer copies the
            model in each step (`torch.nn.DataParallel`): a forward on the instance is bound to the
            first one.
    """

    def __init__(self, **parts: bool) -> None:
        patch(nn.Identity(), **parts)  # a wrong option is told of now, not when training begins
        self._parts = parts
        self.report: Report | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Patch."""
        if args.n_gpu > 1:
            raise ValueError(
                f"PatchCallback: expected one GPU a process, got {args.n_gpu}; start with torchrun "
                "or `accelerate launch`, or set CUDA_VISIBLE_DEVICES"
            )
        self.report = patch(given["model"], **self._parts)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take the kernels out."""
        unpatch(given["model"])
