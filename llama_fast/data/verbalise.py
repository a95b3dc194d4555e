"""Turns rows of the suite's benchmarks into the text of a question with its right answer.

The text is the one that the suite `llama2-paper` gives the model, without examples and general
instructions, followed by the right answer: Llama 2's appendix A.6 looks for "fully verbalized
evaluation samples" in the training data, not for the columns of a table. Wrong options are part of
the text only where the suite shows them to the model (MMLU, CommonsenseQA, AGIEval, BBH).

A benchmark is recognised by the names and types of its fields, as they are in its data set on the
Hugging Face hub; see :data:`FORMS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FORMS", "Form", "verbalise"]

Row = Mapping[str, Any]

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Form:
    """The rows of one benchmark.

    Attributes:
        name: the benchmark.
        fields: name of a field -> whether a value of it is one of this benchmark's.
        text: the text of a row whose fields fit.
        only: whether a row has no other fields; for names that many data sets have.
        stored: context and right answer as the data set has them, where the suite alters them.
    """

    name: str
    fields: Mapping[str, Callable[[Any], bool]]
    text: Callable[[Row], str]
    only: bool = False
    stored: Callable[[Row], str] | None = None

    def fits(self, row: Row) -> bool:
        """Whether a row is one of this benchmark."""
        if self.only and len(row) > len(self.fields):
            return False
        return all(name in row and fits(row[name]) for name, fits in self.fields.items())


def verbalise(row: Row) -> tuple[str, list[str]] | None:
    """Return the name of a row's benchmark and its texts; None if no benchmark has such rows.

    The first text is what the suite asks. A second one is the same as the data set has it, where
    the suite alters more than the frame around it (HellaSwag).

    A row without a valid answer, as in test sets whose answers are withheld, is the question alone.
    """
    for form in FORMS:
        if form.fits(row):
            texts = [form.text(row), *([form.stored(row)] if form.stored else [])]
            return form.name, [text.strip() for text in texts]
    return None


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _some_strings(value: Any) -> bool:
    return _strings(value) and bool(value)


def _number(value: Any) -> bool:
    """Whether a value is a number, or a text that may be one."""
    return isinstance(value, int | str)


def _choices(value: Any) -> bool:
    """Whether a value is the options of ARC and its relatives."""
    return (
        isinstance(value, dict)
        and _strings(value.get("text"))
        and _strings(value.get("label"))
        and len(value["text"]) == len(value["label"])
    )


def _targets(value: Any) -> bool:
    """Whether a value is the options of TruthfulQA."""
    return (
        isinstance(value, dict)
        and _strings(value.get("choices"))
        and isinstance(value.get("labels"), list)
    )


def _answer(options: Sequence[str], index: Any, first: int = 0) -> str:
    """Return a space and the option of a number, or of a text that is one; "" if there is none."""
    text = str(index)
    if not text.isdecimal() or not 0 <= int(text) - first < len(options):
        return ""
    return f" {options[int(text) - first]}"


def _labelled(row: Row) -> str:
    """Return a space and the option that `answerKey` names; "" if it names none."""
    labels: list[str] = row["choices"]["label"]
    key = row["answerKey"]
    return f" {row['choices']['text'][labels.index(key)]}" if key in labels else ""


def _without_marks(text: str) -> str:
    """Return a text of HellaSwag without the marks of WikiHow, such as "[header]"."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _hellaswag(row: Row) -> str:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    ending = _answer([_without_marks(ending) for ending in row["endings"]], row["label"])
    return _without_marks(context) + ending


def _hellaswag_stored(row: Row) -> str:
    return f"{row['ctx_a']} {row['ctx_b']}".rstrip() + _answer(row["endings"], row["label"])


def _piqa(row: Row) -> str:
    answer = _answer([row["sol1"], row["sol2"]], row["label"])
    return f"Question: {row['goal']}\nAnswer:{answer}"


def _siqa(row: Row) -> str:
    options = [row[f"answer{letter}"] for letter in "ABC"]
    return f"Q: {row['context']} {row['question']}\nA:{_answer(options, row['label'], first=1)}"


def _winogrande(row: Row) -> str:
    before, _, after = row["sentence"].partition("_")
    option = _answer([row["option1"], row["option2"]], row["answer"], first=1)
    return f"{before}{option.removeprefix(' ') or '_'} {after.strip()}"


def _arc(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer:{_labelled(row)}"


def _openbookqa(row: Row) -> str:
    return f"{row['question_stem']}{_labelled(row)}"


def _commonsenseqa(row: Row) -> str:
    options = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    shown = "\n".join(f"{label}. {text}" for label, text in options)
    answer = f" {row['answerKey']}" if row["answerKey"] else ""
    return f"Question: {row['question'].strip()}\n{shown}\nAnswer:{answer}"


def _mmlu(row: Row) -> str:
    options = zip(_LETTERS, row["choices"], strict=False)
    shown = "\n".join(f"{letter}. {text}" for letter, text in options)
    answer = _answer(_LETTERS[: len(row["choices"])], row["answer"])
    return f"{row['question'].strip()}\n{shown}\nAnswer:{answer}"


def _agieval(row: Row) -> str:
    return row["query"] + _answer(row["choices"], row["gold"][0] if row["gold"] else "")


def _bbh(row: Row) -> str:
    return f"Q: {row['input']}\nA: {row['target']}"


def _boolq(row: Row) -> str:
    # The original has a boolean `answer`, the copy in SuperGLUE a number `label`.
    right = row.get("label", row.get("answer"))
    answer = _answer(["no", "yes"], int(right) if isinstance(right, bool) else right)
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:{answer}"


def _squad(row: Row) -> str:
    answers = row["answers"].get("text") or ["unanswerable"]
    question = f"Question: {row['question']}\n\nAnswer: {answers[0]}"
    return f"Title: {row['title']}\n\nBackground: {row['context']}\n\n{question}"


def _nq(row: Row) -> str:
    return f"Q: {row['question']}?\nA: {row['answer'][0]}"


def _triviaqa(row: Row) -> str:
    answer = row["answer"].get("value") or "".join(row["answer"]["aliases"][:1])
    return f"Question: {row['question']}?\nAnswer: {answer}"


def _gsm8k(row: Row) -> str:
    return f"Q: {row['question']}\nA: {row['answer'].split('####')[-1].strip()}"


def _math(row: Row) -> str:
    return f"Problem:\n{row['problem']}\n\nSolution: {_boxed(row['solution'])}"


def _boxed(solution: str) -> str:
    r"""Return what the last ``\boxed{...}`` contains; the whole solution if there is none."""
    start = solution.rfind("\\boxed{")
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(solution)) if start >= 0 else ():
        if solution[at] == "}" and depth == 0:
            return solution[begin:at]
        depth += {"{": 1, "}": -1}.get(solution[at], 0)
    return solution


def _humaneval(row: Row) -> str:
    return row["prompt"] + row["canonical_solution"]


def _mbpp(row: Row) -> str:
    # The suite shows the first three tests.
    tests = "\n".join(row["test_list"][:3])
    task = row.get("text", row.get("prompt"))  # `prompt` in the sanitized version
    return (
        f"You are an expert Python programmer, and here is your task: {task} Your code "
        f"should pass these tests:\n\n{tests}\n[BEGIN]\n{row['code']}"
    )


def _truthfulqa(row: Row) -> str:
    options = row["mc1_targets"]
    right = [text for text, label in zip(options["choices"], options["labels"], strict=False)
             if label == 1]  # fmt: skip
    return f"Q: {row['question']}\nA: {''.join(right[:1])}"


def _truthfulqa_free(row: Row) -> str:
    return f"Q: {row['question']}\nA: {row['best_answer']}"


FORMS: tuple[Form, ...] = (
    Form(
        "HellaSwag",
        {"activity_label": _string, "ctx_a": _string, "ctx_b": _string, "endings": _strings,
         "label": _number},
        _hellaswag,
        stored=_hellaswag_stored,
    ),
    Form("PIQA", {"goal": _string, "sol1": _string, "sol2": _string, "label": _number}, _piqa),
    Form(
        "SIQA",
        {"context": _string, "question": _string, "answerA": _string, "answerB": _string,
         "answerC": _string, "label": _number},
        _siqa,
    ),
    Form(
        "WinoGrande",
        {"sentence": lambda value: isinstance(value, str) and "_" in value,
         "option1": _string, "option2": _string, "answer": _number},
        _winogrande,
    ),
    Form(
        "OpenBookQA",
        {"question_stem": _string, "choices": _choices, "answerKey": _string},
        _openbookqa,
    ),
    Form(
        "CommonsenseQA",
        {"question": _string, "question_concept": _string, "choices": _choices,
         "answerKey": _string},
        _commonsenseqa,
    ),
    Form("ARC", {"question": _string, "choices": _choices, "answerKey": _string}, _arc),
    Form("MMLU", {"question": _string, "choices": _strings, "answer": _number}, _mmlu),
    Form(
        "AGIEval",
        {"query": _string, "choices": _strings, "gold": lambda value: isinstance(value, list)},
        _agieval,
    ),
    Form("BoolQ", {"question": _string, "passage": _string, "label": _number}, _boolq),
    Form(
        "BoolQ",
        {"question": _string, "passage": _string, "answer": lambda v: isinstance(v, bool)},
        _boolq,
    ),
    Form(
        "SQuAD",
        {"title": _string, "context": _string, "question": _string,
         "answers": lambda value: isinstance(value, dict) and _strings(value.get("text"))},
        _squad,
    ),
    Form(
        "TriviaQA",
        {"question": _string,
         "answer": lambda value: isinstance(value, dict) and _strings(value.get("aliases"))},
        _triviaqa,
    ),
    Form("NaturalQuestions", {"question": _string, "answer": _some_strings}, _nq),
    Form(
        "GSM8K",
        {"question": _string,
         "answer": lambda value: isinstance(value, str) and "\n####" in value},
        _gsm8k,
    ),
    Form("MATH", {"problem": _string, "level": _number, "solution": _string}, _math),
    Form("HumanEval", {"prompt": _string, "canonical_solution": _string}, _humaneval),
    Form("MBPP", {"text": _string, "code": _string, "test_list": _strings}, _mbpp),
    Form("MBPP", {"prompt": _string, "code": _string, "test_list": _strings}, _mbpp),
    Form("TruthfulQA", {"question": _string, "mc1_targets": _targets}, _truthfulqa),
    Form("TruthfulQA", {"question": _string, "best_answer": _string}, _truthfulqa_free),
    Form("BBH", {"input": _string, "target": _string}, _bbh, only=True),
)  # fmt: skip
"""The known benchmarks; a row is one of the first whose fields it has."""
