"""The power of a comparison, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from llama_fast.eval.choose.power import questions_needed, smallest_difference


@pytest.mark.parametrize(("n", "score"), [(164, 0.15), (500, 0.5), (2000, 0.8)])
def test_the_difference_is_found_four_times_in_five(n: int, score: float) -> None:
    """Pairs of models that differ by it, tested as McNemar's test with its normal limit."""
    correlation = 0.5
    difference = smallest_difference(n, score, correlation=correlation)
    a, b = score - difference / 2, score + difference / 2
    # The probability that both are right gives the correlation.
    both = a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b))
    draws = np.random.default_rng(0).multinomial(n, [both, a - both, b - both, 1 - a - b + both],
                                                 size=4000)  # fmt: skip
    only_a, only_b = draws[:, 1], draws[:, 2]
    z = np.abs(only_b - only_a) / np.sqrt(np.maximum(only_a + only_b, 1))
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.06)


def test_more_questions_show_smaller_differences() -> None:
    differences = [smallest_difference(n, 0.4) for n in (10, 100, 1000, 10_000)]
    assert differences == sorted(differences, reverse=True)
    needed = questions_needed(differences[2], 0.4)
    assert needed == pytest.approx(1000, abs=1)
    assert smallest_difference(5, 0.0) > 0  # nothing right of five is no certain zero
    assert smallest_difference(1, 0.5) == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="questions: expected a positive number, got 0"):
        smallest_difference(0, 0.5)
    with pytest.raises(ValueError, match=r"difference: expected a number in \(0, 1\], got 2"):
        questions_needed(2, 0.5)
