"""The choice of benchmarks as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from llama_fast._format import duration, fixed
from llama_fast.eval.choose.cards import Card
from llama_fast.eval.choose.cost import costs
from llama_fast.eval.choose.estimate import Estimate
from llama_fast.eval.choose.power import questions_needed, smallest_difference
from llama_fast.eval.choose.purposes import PURPOSES
from llama_fast.eval.choose.redundancy import choose_few, held_out_errors

__all__ = ["card_table", "estimate_table", "few_table", "power_table", "purpose_table"]


def card_table(cards: Sequence[Card], scores: Mapping[str, float]) -> Table:
    """What each benchmark measures, and how far a score can rise.

    Args:
        cards: the benchmarks.
        scores: benchmark -> score of the model in percent, where it is known.
    """
    title = "Benchmarks (paper: the highest score; room: to the human level, or to 100)"
    table = Table(title=title, title_justify="left")
    table.add_column("benchmark", no_wrap=True)
    table.add_column("measures", overflow="fold")
    for name in ("n", "chance", "human", "paper", *(["score"] if scores else []), "room"):
        table.add_column(name, justify="right", no_wrap=True)
    for card in cards:
        score = scores.get(card.name)
        table.add_row(
            card.name,
            card.measures,
            f"{card.questions:,}",
            fixed(card.chance, 0),
            "–" if card.human is None else fixed(card.human, 0),
            fixed(card.best, 0),
            *(["–" if score is None else fixed(score, 1)] if scores else []),
            fixed(card.headroom(score), 0),
        )
    return table


def power_table(
    cards: Sequence[Card],
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    difference: float,
) -> Table:
    """What a run can tell, and what it costs.

    Args:
        cards: the benchmarks.
        scores: benchmark -> score of the model in percent, where it is known; else the highest of
            the paper is expected.
        seconds: benchmark -> seconds a question, where they are known.
        difference: difference in percent points, for which the number of questions is shown.
    """
    title = "The smallest difference that is found in 4 of 5 comparisons, and what it costs"
    table = Table(title=title, title_justify="left")
    table.add_column("benchmark", no_wrap=True)
    names = ["smallest", f"n for {difference:g}", "tokens each"]
    names += ["s each", "all", f"min for {difference:g}"] if seconds else []
    for name in names:
        table.add_column(name, justify="right")
    for card in cards:
        expected = scores.get(card.name, card.best) / 100
        needed, each = questions_needed(difference / 100, expected), seconds.get(card.name)
        row = [
            fixed(100 * smallest_difference(card.questions, expected), 1),
            f"{needed:,}",
            f"{costs()[card.name].tokens:,.0f}",
        ]
        if seconds and each is None:
            row += ["–"] * 3
        elif each is not None:
            minutes = needed * each / 60
            row += [f"{each:.2g}", duration(each * card.questions), f"{minutes:.2g}"]
        table.add_row(card.name, *row)
    return table


def few_table(count: int) -> Table:
    """Which few benchmarks predict the mean of all, and how well."""
    steps, errors = choose_few(count), held_out_errors(count)
    table = Table(
        title=f"Which few predict the mean of all, over the paper's 12 models "
        f"(without any: {fixed(steps[0].unaided, 1)} points)",
        title_justify="left",
    )
    table.add_column("benchmarks", overflow="fold")
    table.add_column("error in points", justify="right")
    table.add_column("chosen without the model", justify="right")
    for step, error in zip(steps, errors, strict=True):
        new = step.benchmarks[-1]
        table.add_row(("+ " if len(step.benchmarks) > 1 else "") + new, fixed(step.error, 1),
                      fixed(error, 1))  # fmt: skip
    return table


def purpose_table() -> Table:
    """The purposes, their benchmarks, and why."""
    table = Table(title="Purposes", title_justify="left")
    table.add_column("--purpose", no_wrap=True)
    table.add_column("minutes", justify="right")
    table.add_column("benchmarks and why", overflow="fold")
    for purpose in PURPOSES.values():
        why = Text(", ".join(purpose.parts) + "\n")
        why.append(f"{purpose.what}: {purpose.why}", style="dim")
        table.add_row(purpose.name, f"{purpose.minutes:g}", why)
    return table


def estimate_table(found: Estimate, cards: Mapping[str, Card]) -> Table:
    """The estimate of the mean of the benchmarks, and what it was computed from."""
    low, high = fixed(found.low, 1), fixed(found.high, 1)
    table = Table(
        title=f"Mean of these benchmarks on all their questions: {fixed(found.value, 1)}, "
        f"95 % interval {low} to {high}",
        title_justify="left",
    )
    for name in ("benchmark", "asked", "of", "score", "chance", "room"):
        table.add_column(name, justify="left" if name == "benchmark" else "right")
    for sample in found.samples:
        card, score = cards[sample.name], 100 * sample.mean()
        cells: list[Any] = [f"{sample.asked:,}", f"{sum(sample.populations):,}", fixed(score, 1)]
        table.add_row(sample.name, *cells, fixed(card.chance, 1), fixed(card.headroom(score), 1))
    return table
