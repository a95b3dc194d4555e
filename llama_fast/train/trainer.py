"""A minimal training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llama_fast.train.metrics import read_scalars


@dataclass(frozen=True)
class EpochResult:
    """Result of one pass over the data.

    Attributes:
        loss: mean loss over all targets that are not -100.
        losses: loss of each step.
        tokens: number of targets that are not -100.
        seconds: wall-clock time, including data loading.
    """

    loss: float
    losses: list[float]
    tokens: int
    seconds: float


class Trainer:
    """Minimises ``criterion`` over batches of (tokens, targets).

    Args:
        model: a module from tokens (B,S) to logits (B,S,V), such as ``LLaMA``.
        criterion: a function from logits (N,V) and targets (N,) to the mean loss over the targets
            that are not -100, such as ``llama_fast.cross_entropy`` or
            ``torch.nn.CrossEntropyLoss()``. None uses ``model.loss``, which computes the loss
            without storing the logits.
        optimizer: an optimizer of the model's parameters.
        max_grad_norm: norm to which gradients are clipped; None disables clipping.
        log: called with a line of text after each epoch; None logs nothing.
        on_step: called with (step, loss) after each step; steps count from 0 over all epochs.

    Example:
        >>> model = LLaMA(vocab_size=256, embed_dim=64, num_heads=4, num_layers=2, p_dropout=0.1)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> history = Trainer(model, cross_entropy, optimizer).train(dataloader, num_epochs=3)
        >>> accuracy = evaluate(model, validation_dataloader)
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None = None,
        log: Callable[[str], object] | None = print,
        on_step: Callable[[int, float], object] | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.log = log
        self.on_step = on_step

    def train(
        self, dataloader: Iterable[tuple[Tensor, Tensor]], num_epochs: int
    ) -> list[EpochResult]:
        """Train for ``num_epochs`` passes over the data.

        The model is set to training mode, and its mode is restored at the end.

        Args:
            dataloader: yields pairs of tokens and targets, both (B,S) int64.
            num_epochs: number of passes, >= 0.

        Returns:
            One :class:`EpochResult` per epoch.

        Raises:
            ValueError: the dataloader is empty, or `num_epochs` is negative.
            FloatingPointError: the loss is NaN or infinite. The weights are those before that step.
        """
        if num_epochs < 0:
            raise ValueError(f"num_epochs: expected a number >= 0, got {num_epochs}")
        history: list[EpochResult] = []
        was_training = self.model.training
        self.model.train()
        try:
            for number in range(1, num_epochs + 1):
                epoch = self._train_epoch(dataloader, sum(len(e.losses) for e in history))
                history.append(epoch)
                if self.log is not None:
                    self.log(
                        f"epoch {number}/{num_epochs}: loss {epoch.loss:.4f}, "
                        f"{epoch.tokens / epoch.seconds:,.0f} tokens/s"
                    )
        finally:
            self.model.train(was_training)
        return history

    def _train_epoch(
        self, dataloader: Iterable[tuple[Tensor, Tensor]], first_step: int
    ) -> EpochResult:
        device = next(self.model.parameters()).device
        losses, total, tokens_seen = [], 0.0, 0
        start = time.perf_counter()
        for step, (tokens, targets) in enumerate(dataloader, first_step):
            tokens, targets = tokens.to(device), targets.to(device)
            loss = self._loss(tokens, targets)
            value, counted = read_scalars(loss, (targets != -100).sum())
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"loss: expected a finite number, got {value} at step {step}"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            self.optimizer.step()
            losses.append(value)
            total += value * counted
            tokens_seen += int(counted)
            if self.on_step is not None:
                self.on_step(step, value)
        if not losses:
            raise ValueError("dataloader: expected at least one batch, got none")
        return EpochResult(total / tokens_seen, losses, tokens_seen, time.perf_counter() - start)

    def _loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        if self.criterion is None:
            return self.model.loss(tokens, targets)
        logits = self.model(tokens)  # (B,S,V)
        return self.criterion(logits.flatten(0, 1), targets.flatten())
