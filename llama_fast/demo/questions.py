"""Reads the benchmark files and words the questions as the usual evaluation harnesses do.

Prompts: HellaSwag is "<activity>: <context>" followed by each ending, after the WikiHow markup is
cleaned away; ARC is "Question: <question>\\nAnswer:" followed by each answer's text. This is the
wording of EleutherAI's lm-evaluation-harness and of AI2's OLMo evaluation.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Question", "arc", "boolq_passages", "hellaswag", "read_table", "sample"]


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: which of ``choices`` goes on from ``context`` with a space?

    Attributes:
        id: the data set's own name of the question.
        context: prompt, without white space at its end.
        choices: the answers' texts.
        gold: index of the right choice.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int


def read_table(root: Path, dataset: str, config: str, split: str = "validation") -> "pyarrow.Table":
    """The Arrow table of one split below ``fetch.benchmark_path()``.

    Raises:
        FileNotFoundError: there is no such data set, configuration or split; names those there are.
        ValueError: the file is not an Arrow stream.
    """
    import pyarrow

    base = Path(root) / "hf_datasets"
    path = base / dataset / config / split / "data-00000-of-00001.arrow"
    if not path.is_file():
        there = sorted(str(p.parent.relative_to(base)) for p in base.rglob("*.arrow"))
        there = [name for name in there if "mmlu" not in name]
        raise FileNotFoundError(f"no {dataset}/{config}/{split} in {base}; there are: {there}")
    try:
        with pyarrow.memory_map(str(path)) as source:
            return pyarrow.ipc.open_stream(source).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not an Arrow stream: {error}") from error


def hellaswag(root: Path) -> list[Question]:
    """The 10,042 questions of HellaSwag's validation split (Zellers et al. 2019)."""
    questions = []
    for row in read_table(root, "hellaswag", "none").to_pylist():
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        choices = tuple(_without_markup(ending) for ending in row["endings"])
        name = str(row["ind"])
        questions.append(Question(name, _without_markup(context), choices, int(row["label"])))
    return questions


def arc(root: Path, config: str = "ARC-Easy") -> list[Question]:
    """The validation questions of "ARC-Easy" (570) or "ARC-Challenge" (299), Clark et al. 2018."""
    questions = []
    for row in read_table(root, "ai2_arc", config).to_pylist():
        gold = row["choices"]["label"].index(row["answerKey"])
        context = f"Question: {row['question']}\nAnswer:"
        questions.append(Question(row["id"], context, tuple(row["choices"]["text"]), gold))
    return questions


def boolq_passages(root: Path) -> list[str]:
    """The distinct passages of BoolQ's validation split (Clark et al. 2019), in file order."""
    passages = read_table(root, "boolq", "none").column("passage").to_pylist()
    return list(dict.fromkeys(passages))


def sample(questions: Sequence[Question], count: int, seed: int = 0) -> list[Question]:
    """``count`` of the questions drawn without replacement; all of them if there are fewer.

    Drawn, because the files are ordered by source: their first rows are not like the rest.
    """
    return random.Random(seed).sample(list(questions), min(count, len(questions)))


def _without_markup(text: str) -> str:
    """Cleans a WikiHow text: headings become sentences, other bracketed marks go."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
