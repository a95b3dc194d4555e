"""What stands beside a score: that of guessing, and the room up to the human level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from llama_fast.eval.choose.cards import cards
from llama_fast.eval.report.questions import Question
from llama_fast.eval.suite.presets import PRESETS, Part
from llama_fast.eval.suite.subjects import BBH

__all__ = ["Levels", "levels_of_options", "levels_of_parts", "levels_of_task"]

# Score of guessing in percent on the tasks of BBH: 100 divided by the number of options, the mean
# over the questions; 0 where the answer is not one of a few. Counted in its data.
_BBH = {
    "boolean_expressions": 50.0,
    "causal_judgement": 50.0,
    "date_understanding": 17.2,
    "disambiguation_qa": 33.2,
    "formal_fallacies": 50.0,
    "geometric_shapes": 9.8,
    "hyperbaton": 50.0,
    "logical_deduction_five_objects": 20.0,
    "logical_deduction_seven_objects": 14.3,
    "logical_deduction_three_objects": 33.3,
    "movie_recommendation": 24.6,
    "navigate": 50.0,
    "penguins_in_a_table": 20.0,
    "reasoning_about_colored_objects": 12.1,
    "ruin_names": 24.9,
    "salient_translation_error_detection": 16.7,
    "snarks": 50.0,
    "sports_understanding": 50.0,
    "temporal_sequences": 25.0,
    "tracking_shuffled_objects_five_objects": 20.0,
    "tracking_shuffled_objects_seven_objects": 14.3,
    "tracking_shuffled_objects_three_objects": 33.3,
    "web_of_lies": 50.0,
}
# Sets of AGIEval with four options; the others have five.
_FOUR = ("logiqa_en", "sat_en", "sat_en_without_passage", "sat_math")


@dataclass(frozen=True)
class Levels:
    """The scale of a score, in percent.

    Attributes:
        chance: score of guessing.
        top: published human level, or 100 where there is none.
    """

    chance: float
    top: float = 100.0

    def headroom(self, score: float) -> float:
        """Percentage points from a score to the top; negative above the human level."""
        return self.top - score


def levels_of_task(name: str) -> Levels | None:
    """Levels of a task of the suite, or of the group of a benchmark's tasks; None for others.

    Of the tasks of a benchmark with several (MMLU, MATH, BBH, AGIEval) no human level is known.
    """
    return _by_task().get(name)


def levels_of_parts(names: Sequence[str]) -> Levels | None:
    """Levels of the mean of some benchmarks of the suite; None if one is not known, or for none."""
    found = [levels for name in names if (levels := _by_part().get(name))]
    if not found or len(found) < len(names):
        return None
    chance = math.fsum(levels.chance for levels in found) / len(found)
    return Levels(chance, math.fsum(levels.top for levels in found) / len(found))


def levels_of_options(questions: Sequence[Question]) -> Levels | None:
    """Levels of a multiple-choice task by its numbers of options; None if it has no options."""
    if not questions or not all(question.options for question in questions):
        return None
    return Levels(100 * math.fsum(1 / len(q.options) for q in questions) / len(questions))


@cache
def _by_part() -> dict[str, Levels]:
    found = {
        name: Levels(card.chance, 100.0 if card.human is None else card.human)
        for name, card in cards().items()
    }
    # The mean share of true answers among those of TruthfulQA's 817 questions.
    return {"MC2": Levels(44.8), **found}


@cache
def _by_task() -> dict[str, Levels]:
    found: dict[str, Levels] = {}
    for preset in PRESETS.values():
        for part in preset.parts:
            whole = levels_of_parts([part.name])
            if whole is None:
                continue
            found[part.load] = whole
            if len(part.tasks) > 1:
                found |= {task: Levels(_chance(part, at)) for at, task in enumerate(part.tasks)}
    return found


def _chance(part: Part, at: int) -> float:
    """Score of guessing on one of the tasks of a benchmark."""
    if part.name == "BBH":
        return _BBH.get(BBH[at], 0.0)
    if part.name == "AGIEval":
        return 25.0 if part.tasks[at].removeprefix("agieval_") in _FOUR else 20.0
    return cards()[part.name].chance
