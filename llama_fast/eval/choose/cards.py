"""What is known of each benchmark, and what the Llama 2 paper's twelve models score on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Card", "PaperScores", "cards", "paper_scores"]


@dataclass(frozen=True)
class PaperScores:
    """Scores of the paper's models on each benchmark, in percent.

    Attributes:
        source: the tables of the paper.
        benchmarks: their names, as those of a suite's parts.
        models: names of the models, in the paper's order.
        scores: model -> scores in the order of `benchmarks`.
    """

    source: str
    benchmarks: tuple[str, ...]
    models: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]

    def of(self, benchmark: str) -> dict[str, float]:
        """Model -> score on a benchmark."""
        at = self.benchmarks.index(benchmark)
        return {model: self.scores[model][at] for model in self.models}


@dataclass(frozen=True)
class Card:
    """A benchmark.

    Attributes:
        name: as that of a suite's part.
        measures, format, languages, license: in words.
        questions: number of questions of the split that is asked.
        chance: score of guessing, in percent.
        human: published human level in percent; None if there is none.
        human_source: who published it.
        sensitivity: what in the prompt changes the score, and by how much where it is known.
        paper: model -> score in the Llama 2 paper.
    """

    name: str
    measures: str
    format: str
    languages: str
    questions: int
    chance: float
    human: float | None
    human_source: str
    license: str
    sensitivity: str
    paper: dict[str, float]

    @property
    def best(self) -> float:
        """Highest score of the paper's models."""
        return max(self.paper.values())

    @property
    def _top(self) -> float:
        return 100.0 if self.human is None else self.human

    def headroom(self, score: float | None = None) -> float:
        """Percent points between a score (None: the paper's best) and the human level, else 100."""
        return self._top - (self.best if score is None else score)

    def above_chance(self, score: float) -> float:
        """The share of the way from guessing to the human level (or 100) that a score has come."""
        return (score - self.chance) / (self._top - self.chance)

    def to_dict(self) -> dict[str, Any]:
        """The card as data for JSON."""
        return {**asdict(self), "best": self.best, "headroom": self.headroom()}


@cache
def paper_scores() -> PaperScores:
    """The paper's scores of each benchmark (arXiv 2307.09288, Tables 3 and 20 to 25)."""
    data = _read("paper_benchmarks.json")
    return PaperScores(
        data["source"],
        tuple(data["benchmarks"]),
        tuple(model["name"] for model in data["models"]),
        {model["name"]: tuple(model["scores"]) for model in data["models"]},
    )


@cache
def cards() -> dict[str, Card]:
    """The card of each benchmark of the suite that has a score in the paper's Table 3."""
    scores = paper_scores()
    return {
        name: Card(name=name, paper=scores.of(name), **card)
        for name, card in _read("cards.json").items()
    }


def _read(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
