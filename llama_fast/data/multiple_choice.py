"""Reads multiple-choice questions.

A file of questions has one JSON object per line, in one of two forms:

    {"context": "The capital of France is", "choices": ["Paris", "Rome"], "gold": 0}
    {"question": "Which ...?", "choices": {"text": [...], "label": ["A", "B"]}, "answerKey": "B"}

The second form is that of ARC and OpenBookQA (with `question_stem`); it becomes the prompt
"Question: <question>\\nAnswer:".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_fast._reading import read_json_lines
from llama_fast.data.rows import DataError

__all__ = ["MultipleChoice", "arc_prompt", "read_multiple_choice", "sample"]


@dataclass(frozen=True)
class MultipleChoice:
    """A question: which of ``choices`` continues ``context`` after a space?

    Attributes:
        id: the question's id in the data set.
        context: the prompt, without white space at its end.
        choices: the texts of the answers.
        gold: index of the right choice.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int


def read_multiple_choice(path: Path) -> list[MultipleChoice]:
    """Read the questions of a JSON Lines file, in the forms that the module's docstring shows.

    Empty lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line has another form, or there are no questions.
    """
    if not path.is_file():
        raise FileNotFoundError(f"benchmarks: no such file: {path}")
    questions = []
    for number, (place, row) in enumerate(read_json_lines(path, error=DataError), 1):
        try:
            questions.append(_question(row, f"{path.stem}-{number}"))
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(
                f"{place}: expected context, choices and gold, or question, "
                "choices with text and label, and answerKey"
            ) from None
    if not questions:
        raise DataError(f"{path}: expected questions, the file is empty")
    return questions


def arc_prompt(question: str) -> str:
    """The prompt for a question of ARC or OpenBookQA, worded as in the usual harnesses."""
    return f"Question: {question}\nAnswer:"


def sample(questions: Sequence[MultipleChoice], count: int, seed: int = 0) -> list[MultipleChoice]:
    """Draw ``count`` questions without replacement; all of them if there are fewer.

    They are drawn at random because files are often sorted, so their first rows are special.
    """
    return random.Random(seed).sample(list(questions), min(count, len(questions)))


def _question(row: dict[str, Any], name: str) -> MultipleChoice:
    if "answerKey" in row:
        gold = row["choices"]["label"].index(row["answerKey"])
        context = arc_prompt(row["question"] if "question" in row else row["question_stem"])
        choices = tuple(map(str, row["choices"]["text"]))
    else:
        gold, context, choices = int(row["gold"]), str(row["context"]), tuple(row["choices"])
    if not (context.strip() and len(choices) > 1 and all(choices) and 0 <= gold < len(choices)):
        raise ValueError("a question without text, choices, or a right one")
    return MultipleChoice(str(row.get("id", name)), context, choices, gold)
