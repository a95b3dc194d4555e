"""Multiple-choice questions that a run is asked while it trains.

A file has one JSON object a line, in either form:

    {"context": "The capital of France is", "choices": ["Paris", "Rome"], "gold": 0}
    {"question": "Which ...?", "choices": {"text": [...], "label": ["A", "B"]}, "answerKey": "B"}

The second is that of ARC and OpenBookQA (there `question_stem`), worded as
:func:`llama_fast.demo.questions.arc` words it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_fast._reading import read_json_lines
from llama_fast.data import DataError, TokenShards
from llama_fast.data.tokenizer import tokenizer_of
from llama_fast.demo.questions import Question, sample
from llama_fast.demo.score import score, split_tokens
from llama_fast.models import LLaMA


@dataclass(frozen=True)
class Row:
    """A line of ``benchmarks.csv``.

    Attributes:
        step: after which the questions were asked.
        benchmark: name of the file, without its ending.
        questions: how many.
        accuracy: share answered rightly by log-likelihood per character.
        stderr: standard error of ``accuracy``.
        raw_accuracy: the same without length normalisation.
        chance: expected accuracy of guessing.
    """

    step: int
    benchmark: str
    questions: int
    accuracy: float
    stderr: float
    raw_accuracy: float
    chance: float

    def __str__(self) -> str:
        """For a line of output."""
        return (
            f"{self.benchmark} {self.accuracy:.1%} ± {self.stderr:.1%} of {self.questions} "
            f"questions (guessing: {self.chance:.1%})"
        )


class Benchmarks:
    """Questions, and the tokenizer of the data that the model learns from.

    Args:
        files: JSON Lines, of different names.
        shards: whose index names the tokenizer.
        count: questions of each file, always the same ones; 0 takes all.
        seed: of their choice.
        max_seq_len: longest sequence that the model accepts.

    Raises:
        FileNotFoundError: a file is not there.
        DataError: a file that has something else, or two of the same name; no tokenizer.
        ValueError: a question longer than `max_seq_len`.
    """

    def __init__(
        self, files: Sequence[str], shards: TokenShards, count: int, seed: int, max_seq_len: int
    ) -> None:
        self.tokenizer = tokenizer_of(shards)
        self.tasks: dict[str, list[Question]] = {}
        for file in map(Path, files):
            if file.stem in self.tasks:
                raise DataError(f"benchmarks: expected files of different names, two are {file}")
            questions = read_questions(file)
            self.tasks[file.stem] = sample(questions, count or len(questions), seed)
        for name, task in self.tasks.items():
            for question in task:  # now, rather than after hours
                longest = max(
                    len(split_tokens(self.tokenizer, question.context, choice)[0])
                    for choice in question.choices
                )
                if longest > max_seq_len:
                    raise ValueError(
                        f"benchmarks: expected questions of at most max_seq_len = {max_seq_len} "
                        f"tokens, {name} has one of {longest}: {question.id}"
                    )

    def ask(self, model: LLaMA, step: int) -> list[Row]:
        """The scores of a model, which is in evaluation mode meanwhile; in its weights' dtype."""
        was_training = model.training
        model.eval()
        try:
            scores = [score(model, self.tokenizer, name, task) for name, task in self.tasks.items()]
        finally:
            model.train(was_training)
        return [
            Row(step, s.task, s.count, s.accuracy, s.stderr, s.raw_accuracy, s.chance)
            for s in scores
        ]


def read_questions(path: Path) -> list[Question]:
    """The questions in a file; see the head of this module. Empty lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line of another form, or none but empty ones.
    """
    if not path.is_file():
        raise FileNotFoundError(f"benchmarks: no such file: {path}")
    found = []
    for number, (place, row) in enumerate(read_json_lines(path, error=DataError), 1):
        try:
            found.append(_question(row, f"{path.stem}-{number}"))
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(
                f"{place}: expected context, choices and gold, or question, "
                "choices with text and label, and answerKey"
            ) from None
    if not found:
        raise DataError(f"{path}: expected questions, the file is empty")
    return found


def _question(row: dict[str, Any], name: str) -> Question:
    if "answerKey" in row:
        gold = row["choices"]["label"].index(row["answerKey"])
        text = row["question"] if "question" in row else row["question_stem"]
        choices = tuple(map(str, row["choices"]["text"]))
        context = f"Question: {text}\nAnswer:"
    else:
        gold, context, choices = int(row["gold"]), str(row["context"]), tuple(row["choices"])
    if not (context.strip() and len(choices) > 1 and all(choices) and 0 <= gold < len(choices)):
        raise ValueError("a question without text, choices, or a right one")
    return Question(str(row.get("id", name)), context, choices, gold)
