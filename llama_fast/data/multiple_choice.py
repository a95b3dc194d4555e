"""Multiple-choice questions, as text.

A file of questions has one JSON object a line, in either form:

    {"context": "The capital of France is", "choices": ["Paris", "Rome"], "gold": 0}
    {"question": "Which ...?", "choices": {"text": [...], "label": ["A", "B"]}, "answerKey": "B"}

The second is the form of ARC and OpenBookQA (there `question_stem`), which becomes the prompt
"Question: <question>\\nAnswer:".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_fast._reading import read_json_lines
from llama_fast.data.documents import DataError

__all__ = ["MultipleChoice", "arc_prompt", "read_multiple_choice", "sample"]


@dataclass(frozen=True)
class MultipleChoice:
    """A question: which of ``choices`` continues ``context`` after a space?

    Attributes:
        id: the data set's own name of the question.
        context: prompt, without white space at its end.
        choices: the texts of the answers.
        gold: index of the right choice.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int


def read_multiple_choice(path: Path) -> list[MultipleChoice]:
    """The questions of a JSON Lines file; empty lines are skipped. See the head of this module.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line of another form, or none but empty ones.
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
    """The prompt of a question of ARC or OpenBookQA, in the wording of the usual harnesses."""
    return f"Question: {question}\nAnswer:"


def sample(questions: Sequence[MultipleChoice], count: int, seed: int = 0) -> list[MultipleChoice]:
    """``count`` of the questions drawn without replacement; all of them if there are fewer.

    Drawn, because files are often sorted by source: their first rows are not like the rest.
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
