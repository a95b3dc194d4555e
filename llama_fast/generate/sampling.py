"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingOptions:
    """Options for drawing tokens, with the meaning and order of transformers' `generate`.

    Attributes:
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_k: only the k likeliest tokens (and those as likely as the k-th); 0: all.
        top_p: only the likeliest tokens that together have this probability (Holtzman et al. 2020,
            arXiv:1904.09751); 1: all.
        min_p: only tokens with at least this share of the likeliest one's probability (Nguyen et
            al. 2024, arXiv:2407.01082); 0: all.
        repetition_penalty: logits of tokens that are in the text already, prompt included, are
            divided by it where positive and multiplied where negative (Keskar et al. 2019,
            arXiv:1909.05858); 1: none. It changes greedy choices too.
        seed: of this request's random numbers; None draws one from torch's default generator.

    Raises:
        ValueError: a number outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check("temperature", "a number >= 0", 0 <= self.temperature < math.inf)
        self._check("top_k", "an int >= 0", self.top_k == int(self.top_k) and self.top_k >= 0)
        self._check("top_p", "a number in (0, 1]", 0 < self.top_p <= 1)
        self._check("min_p", "a number in [0, 1]", 0 <= self.min_p <= 1)
        self._check("repetition_penalty", "a number > 0", 0 < self.repetition_penalty < math.inf)

    def _check(self, name: str, expected: str, ok: bool) -> None:
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")

    @property
    def plain_greedy(self) -> bool:
        """Whether the token is the argmax of the logits as they are."""
        return self.temperature == 0 and self.repetition_penalty == 1


def adjusted(logits: Tensor, options: SamplingOptions, seen: Tensor | None = None) -> Tensor:
    """The logits whose softmax is drawn from; -inf for excluded tokens.

    Args:
        logits: (B,V).
        options: a temperature of 0 is not applied.
        seen: (B,S) int64, the tokens of each text so far, for the repetition penalty.

    Returns:
        (B,V) float32, or float64 where the logits are.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if options.repetition_penalty != 1:
        if seen is None:
            raise ValueError("seen: expected the tokens so far beside a repetition_penalty")
        old = scores.gather(-1, seen)
        penalty = options.repetition_penalty
        scores = scores.scatter(-1, seen, torch.where(old < 0, old * penalty, old / penalty))
    if options.temperature == 0:
        return scores
    scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[-1]:
        least = scores.topk(options.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if options.top_p < 1:
        rising, order = scores.sort()
        out = rising.softmax(-1).cumsum(-1) <= 1 - options.top_p
        out[:, -1] = False  # the likeliest stays
        scores = scores.masked_fill(out.scatter(-1, order, out), -math.inf)
    if options.min_p > 0:
        probabilities = scores.softmax(-1)
        least = options.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(probabilities < least, -math.inf)
    return scores


def next_tokens(
    logits: Tensor,
    options: SamplingOptions,
    seen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next token of each row: (B,V) logits to (B,) int64. Arguments as for :func:`adjusted`."""
    if options.plain_greedy:
        return logits.argmax(-1)
    scores = adjusted(logits, options, seen)
    if options.temperature == 0:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1)
