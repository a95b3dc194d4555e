"""Reads the fetched benchmark tables, with the prompts of the usual evaluation harnesses.

A HellaSwag prompt is "<activity>: <context>" without WikiHow markup, followed by each ending; an
ARC prompt is "Question: <question>\\nAnswer:" followed by the text of each answer. This is the
wording of EleutherAI's lm-evaluation-harness and of AI2's OLMo evaluation.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from llama_fast.data.multiple_choice import MultipleChoice, arc_prompt

if TYPE_CHECKING:
    import pyarrow

__all__ = ["arc", "boolq_passages", "hellaswag", "read_table"]


def read_table(root: Path, dataset: str, config: str, split: str = "validation") -> "pyarrow.Table":
    """Read the Arrow table of one split below ``root``.

    Args:
        root: the folder that :func:`llama_fast.data.fetch.benchmark_path` returns.
        dataset: name of the data set, such as "ai2_arc".
        config: name of its configuration, such as "ARC-Easy".
        split: "train", "validation" or "test".

    Raises:
        FileNotFoundError: there is no such data set, configuration or split; the message names the
            available ones.
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


def hellaswag(root: Path) -> list[MultipleChoice]:
    """The 10,042 questions of HellaSwag's validation split (Zellers et al. 2019)."""
    questions = []
    for row in read_table(root, "hellaswag", "none").to_pylist():
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        choices = tuple(_without_markup(ending) for ending in row["endings"])
        name, gold = str(row["ind"]), int(row["label"])
        questions.append(MultipleChoice(name, _without_markup(context), choices, gold))
    return questions


def arc(root: Path, config: str = "ARC-Easy") -> list[MultipleChoice]:
    """The validation questions of "ARC-Easy" (570) or "ARC-Challenge" (299), Clark et al. 2018."""
    questions = []
    for row in read_table(root, "ai2_arc", config).to_pylist():
        gold = row["choices"]["label"].index(row["answerKey"])
        choices = tuple(row["choices"]["text"])
        questions.append(MultipleChoice(row["id"], arc_prompt(row["question"]), choices, gold))
    return questions


def boolq_passages(root: Path) -> list[str]:
    """The distinct passages of BoolQ's validation split (Clark et al. 2019), in file order."""
    passages = read_table(root, "boolq", "none").column("passage").to_pylist()
    return list(dict.fromkeys(passages))


def _without_markup(text: str) -> str:
    """A WikiHow text without markup: headings become sentences, other bracketed marks vanish."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
