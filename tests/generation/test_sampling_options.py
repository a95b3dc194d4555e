"""Sampling beside the logits processors of transformers, and in the long run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_fast.generation.sampling import SamplingOptions, adjusted, next_tokens

V = 300


def random_logits(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, V, generator=generator)
    logits[:, 10:14] = logits[:, 9:10]  # ties, as low precision makes them
    return logits


def theirs(logits: Tensor, seen: Tensor, options: SamplingOptions) -> Tensor:
    """In the order of transformers' `generate` with `do_sample`."""
    from transformers.generation import logits_process as processors

    chain: list[Any] = []
    if options.repetition_penalty != 1:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1:
        chain.append(processors.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chain.append(processors.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(processors.TopPLogitsWarper(options.top_p))
    if options.min_p:
        chain.append(processors.MinPLogitsWarper(options.min_p))
    scores = logits.clone()
    for processor in chain:
        scores = processor(seen, scores)
    return scores


@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("temperature", "penalty"), [(1.0, 1.0), (0.7, 1.3), (2.0, 0.5)])
def test_transformers_processors(
    top_k: int, top_p: float, min_p: float, temperature: float, penalty: float
) -> None:
    logits = random_logits(8)
    seen = torch.randint(V, (8, 40), generator=torch.Generator().manual_seed(1))
    options = SamplingOptions(temperature, top_k, top_p, min_p, penalty)
    ours, expected = adjusted(logits, options, seen), theirs(logits, seen, options)
    assert torch.equal(ours.isinf(), expected.isinf())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_the_draws_are_transformers_draws() -> None:
    """One generator, the same probabilities, the same tokens."""
    logits, options = random_logits(200), SamplingOptions(0.9, 50, 0.95, seed=1)
    seen = torch.zeros(200, 1, dtype=torch.int64)
    ours = next_tokens(logits, options, seen, torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    expected = torch.multinomial(theirs(logits, seen, options).softmax(-1), 1).squeeze(1)
    assert torch.equal(ours, expected)


def test_frequencies_are_the_probabilities() -> None:
    n, options = 20_000, SamplingOptions(1.3, 20, 0.9, 0.01)
    logits = random_logits(1)
    p = theirs(logits.double(), torch.zeros(1, 1, dtype=torch.int64), options).softmax(-1)[0]
    drawn = next_tokens(logits.expand(n, V), options, None, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=V).double()
    kept = p > 0
    assert counts[~kept].sum() == 0
    chi2 = ((counts - n * p)[kept] ** 2 / (n * p[kept])).sum().item()
    freedom = int(kept.sum()) - 1
    assert freedom >= 5
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def test_penalty_changes_greedy_choices_too() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[0, 2]])
    assert next_tokens(logits, SamplingOptions(), seen).item() == 0
    assert next_tokens(logits, SamplingOptions(repetition_penalty=1.2), seen).item() == 1
    with pytest.raises(ValueError, match="seen: expected"):
        next_tokens(logits, SamplingOptions(repetition_penalty=1.2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_errors(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected .*, got"):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
