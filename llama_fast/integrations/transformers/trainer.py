"""A callback that patches a model while transformers' Trainer, or a subclass, trains it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from llama_fast.integrations.patch import patch, unpatch
from llama_fast.integrations.report import Report


class PatchCallback(TrainerCallback):
    """Patches the model when training begins and restores it when training ends.

        Trainer(model=model, ..., callbacks=[llama_fast.PatchCallback()])

    Works with TRL's trainers too. A model that is already patched needs no callback. After an
    exception in training the model stays patched; call ``llama_fast.unpatch(model)``, or use
    ``with llama_fast.patch(model): trainer.train()``, which restores it in every case.

    Args:
        **parts: the options of :func:`llama_fast.patch`.

    Attributes:
        report: the :class:`llama_fast.integrations.Report`; None before training.

    Raises:
        TypeError: an option is unknown or not a bool.
        ValueError: training begins on several GPUs in one process. There Trainer copies the model
            in each step (`torch.nn.DataParallel`), but a forward on the instance belongs to the
            original.
    """

    def __init__(self, **parts: bool) -> None:
        patch(nn.Identity(), **parts)  # reports a wrong option now, not when training begins
        self._parts = parts
        self.report: Report | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Patch the model."""
        if args.n_gpu > 1:
            raise ValueError(
                f"PatchCallback: expected one GPU a process, got {args.n_gpu}; start with torchrun "
                "or `accelerate launch`, or set CUDA_VISIBLE_DEVICES"
            )
        self.report = patch(kwargs["model"], **self._parts)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the model."""
        unpatch(kwargs["model"])
