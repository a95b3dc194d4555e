"""Chooses the next token from the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingOptions:
    """Options for drawing tokens, with the meaning and order of transformers' `generate`.

    Attributes:
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: draw from the k most likely tokens (and those as likely as the k-th); 0: from all.
        top_p: draw from the most likely tokens that together have this probability (Holtzman et
            al. 2020, arXiv:1904.09751); 1: from all.
        min_p: draw from tokens with at least this share of the highest probability (Nguyen et al.
            2024, arXiv:2407.01082); 0: from all.
        repetition_penalty: divides positive and multiplies negative logits of tokens that are
            already in the prompt or the text (Keskar et al. 2019, arXiv:1909.05858); 1: no
            penalty. It also affects greedy choices.
        seed: seed of this request's random numbers; None draws one from torch's default generator.

    Raises:
        ValueError: a number is outside its range.
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
        """Whether the next token is the argmax of the unchanged logits."""
        return self.temperature == 0 and self.repetition_penalty == 1


def adjusted(logits: Tensor, options: SamplingOptions, seen: Tensor | None = None) -> Tensor:
    """Apply the options to the logits; excluded tokens get -inf.

    Args:
        logits: (B,V).
        options: the sampling options; a temperature of 0 is not applied.
        seen: (B,S) int64, the tokens of each text so far, for the repetition penalty.

    Returns:
        (B,V) logits in float32 (float64 for float64 input); their softmax is to be drawn from.
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
        out[:, -1] = False  # the most likely token always stays
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
    """Choose the next token of each row: (B,V) logits to (B,) int64.

    The arguments are those of :func:`adjusted`; `generator` draws the random numbers.
    """
    if options.plain_greedy:
        return logits.argmax(-1)
    scores = adjusted(logits, options, seen)
    if options.temperature == 0:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1)
