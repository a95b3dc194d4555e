"""What a number of questions can tell: power of a comparison of two models on the same questions.

Two models answer n questions. The difference of their scores has the variance d / n, where d is the
share of questions on which exactly one of them is right (less the square of the difference, which
is small): the paired test of McNemar. A difference is found with probability `power` at the level
`alpha` if it is (z_{1 - alpha/2} + z_power) * sqrt(d / n) (Miller 2024, arXiv 2411.00640, eq. 9).
"""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["disagreement", "questions_needed", "smallest_difference"]

POWER, ALPHA = 0.8, 0.05
# Correlation between two models' answers to the same questions, of models of one kind and size:
# what one finds hard, the other does, too. 0 is that of independent answers.
CORRELATION = 0.5


def disagreement(score: float, correlation: float = CORRELATION) -> float:
    """The expected share of questions on which exactly one of two equally good models is right.

    Args:
        score: the score of both, from 0 to 1.
        correlation: correlation of their answers.
    """
    return 2 * score * (1 - score) * (1 - correlation)


def smallest_difference(
    questions: float,
    score: float,
    *,
    power: float = POWER,
    alpha: float = ALPHA,
    correlation: float = CORRELATION,
) -> float:
    """The smallest difference of two scores that a comparison finds with a probability.

    Args:
        questions: number of questions, the same for both models.
        score: about what both score, from 0 to 1; a score near 0 or 1 counts as at least half a
            question away from it.
        power: the probability of finding the difference.
        alpha: the level of the two-sided test.
        correlation: correlation of the two models' answers.

    Returns:
        The difference, from 0 to 1.

    Raises:
        ValueError: `questions` is not positive.
    """
    if not questions > 0:
        raise ValueError(f"questions: expected a positive number, got {questions}")
    edge = min(0.5, 0.5 / questions)
    score = min(max(score, edge), 1 - edge)
    return min(1.0, _factor(power, alpha) * math.sqrt(disagreement(score, correlation) / questions))


def questions_needed(
    difference: float,
    score: float,
    *,
    power: float = POWER,
    alpha: float = ALPHA,
    correlation: float = CORRELATION,
) -> int:
    """The number of questions with which a difference is found; see :func:`smallest_difference`.

    Raises:
        ValueError: `difference` is not in (0, 1].
    """
    if not 0 < difference <= 1:
        raise ValueError(f"difference: expected a number in (0, 1], got {difference}")
    needed = disagreement(min(max(score, 0.01), 0.99), correlation)
    return max(1, math.ceil(needed * (_factor(power, alpha) / difference) ** 2))


def _factor(power: float, alpha: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
