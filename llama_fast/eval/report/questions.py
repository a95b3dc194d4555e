"""Questions as logged by the harness, in one form for the page and for comparisons."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_fast.eval.clusters import cluster_of
from llama_fast.eval.report.results import Run
from llama_fast.eval.report.scores import Score


@dataclass(frozen=True)
class Option:
    """An option of a multiple-choice question; log-probabilities in nats."""

    text: str
    logprob: float
    unconditional: float | None = None


@dataclass(frozen=True)
class Question:
    """A question and a model's answer.

    Attributes:
        key: the document's hash and its repetition in the task; the same in every run.
        doc_id: index in the data set.
        prompt: the text before the answer; for multiple choice, the part common to the options.
        prompt_hash: the harness's hash of the prompt.
        target: the expected answer as logged.
        options: the options of a multiple-choice question, else empty.
        gold: index of the right option; None if unknown or if several are right.
        picked: index of the option that the score's metric selects.
        output: the text that the model wrote; empty for multiple choice.
        extracted: the task filter's result for `output`.
        score: the metric's value, shares from 0 to 1; None if the metric exists only for the task
            as a whole.
        cluster: what the question shares with others, such as a hash of its passage; else None.
    """

    key: tuple[str, int]
    doc_id: int
    prompt: str
    prompt_hash: str
    target: str
    options: tuple[Option, ...]
    gold: int | None
    picked: int | None
    output: str
    extracted: str
    score: float | None
    cluster: str | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether the score is at least 1; None without a score."""
        return None if self.score is None else self.score >= 1


def read_questions(run: Run, task: str, score: Score) -> list[Question]:
    """The questions of a task, in the order of the data set.

    Args:
        run: the run.
        task: a task with samples in the run.
        score: the task's score, which names the metric and the filter.

    Raises:
        ValueError: a line of the samples is broken; names file and line.
    """
    delimiter = (run.results.get("configs", {}).get(task) or {}).get("target_delimiter", " ")
    seen: Counter[str] = Counter()
    result = []
    for number, sample in enumerate(run.samples(task), 1):
        try:
            if sample["filter"] != score.filter:
                continue
            doc_hash = str(sample["doc_hash"])
            question = _question(sample, score, delimiter, (doc_hash, seen[doc_hash]))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"{type(error).__name__} {error}"
            raise ValueError(
                f"{run.files[task]}:{number}: expected a sample of the harness ({what})"
            ) from None
        seen[doc_hash] += 1
        result.append(question)
    return sorted(result, key=lambda question: question.doc_id)


def _question(
    sample: Mapping[str, Any], of_task: Score, delimiter: str, key: tuple[str, int]
) -> Question:
    arguments = [tuple(argument.values()) for argument in sample["arguments"].values()]
    prompt, target = str(arguments[0][0]), str(sample["target"])
    value, score = sample.get(of_task.metric), None
    if isinstance(value, (bool, int, float)):
        score = float(value) * (of_task.scale / 100 if of_task.percent else 1)
    options: tuple[Option, ...] = ()
    gold = picked = None
    output = extracted = ""
    logprobs = [_logprob(response) for response in sample["filtered_resps"]]
    if None not in logprobs and len(logprobs) > 1 and isinstance(arguments[0][1], str):
        numbers = [x for x in logprobs if x is not None]
        has_unconditional = "acc_mutual_info" in sample["metrics"]
        prompt, options = _options(arguments, numbers, delimiter, has_unconditional)
        gold = _gold(target, options, sample.get("acc"))
        picked = _picked(options, of_task.metric)
        if gold is not None and score == 1:
            picked = gold
    elif None in logprobs:
        output = _first_text(sample["resps"])
        extracted = _first_text(sample["filtered_resps"])
    return Question(
        key,
        int(sample["doc_id"]),
        prompt,
        str(sample["prompt_hash"]),
        target,
        options,
        gold,
        picked,
        output,
        extracted,
        score,
        cluster_of(sample.get("doc")),
    )


def _logprob(response: Any) -> float | None:
    """The log-probability in a response such as `["-3.2", "False"]`, else None."""
    is_pair = isinstance(response, (list, tuple)) and len(response) == 2
    return float(response[0]) if is_pair and str(response[1]) in ("True", "False") else None


def _first_text(responses: Any) -> str:
    while isinstance(responses, (list, tuple)):
        responses = responses[0] if responses else ""
    return str(responses)


def _options(
    arguments: Sequence[tuple[Any, ...]],
    logprobs: Sequence[float],
    delimiter: str,
    has_unconditional: bool,
) -> tuple[str, tuple[Option, ...]]:
    contexts = [str(argument[0]) for argument in arguments]
    texts = [str(argument[1]) for argument in arguments]
    n, unconditional = len(texts), [None] * len(texts)
    if has_unconditional:
        # The harness requests log P(option) as well, after the options.
        n //= 2
        unconditional = list(logprobs[n:])  # type: ignore[arg-type]
    contexts, texts = contexts[:n], texts[:n]
    shared = contexts[0]
    if len(set(contexts)) > 1:
        # WinoGrande: the options are in the context and share one continuation.
        first, last = min(contexts), max(contexts)
        same = next((at for at, c in enumerate(first) if c != last[at]), len(first))
        shared = first[: first.rfind(" ", 0, same) + 1]
        texts = [c[len(shared) :] + t for c, t in zip(contexts, texts, strict=True)]
    elif delimiter and all(text.startswith(delimiter) for text in texts):
        texts = [text[len(delimiter) :] for text in texts]
    return shared, tuple(
        Option(*parts) for parts in zip(texts, logprobs[:n], unconditional, strict=False)
    )


def _gold(target: str, options: Sequence[Option], acc: Any) -> int | None:
    """Index of the right option; the logged target may be its index or its text."""
    best = _argmax([option.logprob for option in options])
    candidates = [at for at, option in enumerate(options) if option.text == target]
    if target.isdigit() and int(target) < len(options):
        candidates.append(int(target))
    if not isinstance(acc, (bool, int, float)):
        return candidates[0] if candidates else None
    if _is_list(target):
        return None
    # `acc` is 1 if and only if the most likely option is right.
    for gold in candidates:
        if (gold == best) == (acc == 1):
            return gold
    if acc == 1:
        return best
    return 1 - best if len(options) == 2 else None


def _is_list(target: str) -> bool:
    if not target.startswith("["):
        return False
    try:
        return isinstance(ast.literal_eval(target), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _picked(options: Sequence[Option], metric: str) -> int:
    values = [option.logprob for option in options]
    if all(option.unconditional is not None for option in options):
        values = [o.logprob - (o.unconditional or 0.0) for o in options]
    elif metric == "acc_norm":
        values = [o.logprob / max(1, len(o.text)) for o in options]
    elif metric == "acc_bytes":
        values = [o.logprob / max(1, len(o.text.encode())) for o in options]
    return _argmax(values)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
