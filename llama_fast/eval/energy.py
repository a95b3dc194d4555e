"""Energy of an evaluation, per question and per 1,000 tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from llama_fast._energy import NOT_MEASURABLE, energy_text, find_meter


class TaskEnergy(NamedTuple):
    """What a task used.

    Attributes:
        joules: its energy.
        tokens: number of tokens that went through the model; answers from the cache have none.
        questions: number of questions.
    """

    joules: float
    tokens: int
    questions: int

    def rates(self) -> dict[str, float | None]:
        """Return the energy per 1,000 tokens and per question; None without any."""
        joules, tokens, questions = self
        return {
            "joules_per_1000_tokens": joules / tokens * 1000 if tokens else None,
            "joules_per_question": joules / questions if tokens and questions else None,
        }


class EvaluationEnergy:
    """Measures the energy of the tasks of an evaluation.

    Args:
        device: the device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._meter = find_meter(device)
        self._tasks: dict[str, TaskEnergy] = {}

    def now(self) -> float:
        """Return the energy since the creation, 0 without a meter.

        It is to be called at least once a minute, see :mod:`llama_fast._energy`.
        """
        return 0.0 if self._meter is None else self._meter.joules()

    def add(self, task: str, used: TaskEnergy) -> None:
        """Record what a task used."""
        if self._meter is not None:
            self._tasks[task] = used

    def rates(self, task: str) -> dict[str, float | None]:
        """Return the energy of a task per 1,000 tokens and per question; None if unknown."""
        return self._tasks.get(task, TaskEnergy(0.0, 0, 0)).rates()

    def facts(self) -> dict[str, Any] | str | None:
        """Return what the results record; None if all answers came from the cache."""
        if self._meter is None:
            return NOT_MEASURABLE
        total = self._total()
        if not total.tokens:
            return None
        return {"joules": total.joules, **total.rates(), "source": self._meter.source}

    def __str__(self) -> str:
        total = self._total()
        if self._meter is not None and not total.tokens:
            return "none, all answers came from the cache"
        return energy_text(self._meter, *total, "question")

    def _total(self) -> TaskEnergy:
        used = self._tasks.values()
        return TaskEnergy(
            sum(u.joules for u in used), sum(u.tokens for u in used), sum(u.questions for u in used)
        )
