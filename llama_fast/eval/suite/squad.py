"""SQuAD 2.0 as in lm-eval, with a local implementation of the metric."""

from __future__ import annotations

from functools import partial
from typing import Any

from lm_eval.tasks.squadv2.task import SQuAD2

from llama_fast.eval.suite.answers import exact_match, normalise, token_f1

__all__ = ["INVITATION", "HarnessSquadV2", "SquadV2"]

# What says that a question has no answer, after `normalise`.
_NO_ANSWER = ("", "unanswerable", "no answer")
INVITATION = 'If the background does not answer the question, the answer is "unanswerable".\n\n'

_Item = tuple[dict[str, Any], dict[str, Any]]


class HarnessSquadV2(SQuAD2):
    """The harness's task ``squadv2`` with its prompt, which may lack splits here.

    Scores are in percent, as in the official script (Rajpurkar et al. 2018): ``exact`` and ``f1``
    over all questions, ``HasAns_*`` and ``NoAns_*`` over those with and without an answer,
    ``best_*`` with the best threshold on the probability of "unanswerable".
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config=config)
        self._config.task = "squadv2_harness"
        self._config.num_fewshot = 0
        self._config.output_type = "generate_until"

    def has_training_docs(self) -> bool:
        """Whether the data have a training split."""
        return "train" in self.dataset

    def fewshot_docs(self) -> None:
        """None: the task has no examples, so the training split is not needed."""

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """A question's scores; see the class."""
        stock = super().process_results(doc, results)
        exact, f1 = score(stock["exact"][0]["prediction_text"], doc["answers"]["text"])
        return {**stock, "exact": 100.0 * exact, "f1": 100.0 * f1}

    def aggregation(self) -> dict[str, Any]:
        """Metric -> aggregation over the questions' scores."""
        from lm_eval.api.metrics import mean

        functions: dict[str, Any] = {"exact": mean, "f1": mean}
        for index, name in enumerate(("exact", "f1")):
            functions[f"HasAns_{name}"] = partial(_subset, index, True)
            functions[f"NoAns_{name}"] = partial(_subset, index, False)
            functions[f"best_{name}"] = partial(_best, index)
        return functions


class SquadV2(HarnessSquadV2):
    """SQuAD 2.0 with a prompt that says how to answer that a question has no answer.

    The prompt is the harness's after one sentence. The Llama 2 paper does not give its prompt.
    """

    VERSION = 4

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config=config)
        self._config.task = "squadv2"

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The question's prompt."""
        return INVITATION + str(super().doc_to_text(doc))


def says_no_answer(prediction: str) -> bool:
    """Whether a prediction says that the question has no answer."""
    return normalise(prediction) in _NO_ANSWER


def score(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 of a prediction, each the maximum over the answers.

    An empty list of answers means that the question has none; an empty prediction, "unanswerable"
    and "no answer" say so.
    """
    golds = [gold for gold in answers if gold.strip()] or [""]
    if golds == [""] and says_no_answer(prediction):
        return 1.0, 1.0
    exact = max(exact_match(prediction, gold) for gold in golds)
    return exact, max(token_f1(prediction, gold) for gold in golds)


def _subset(index: int, answerable: bool, items: list[_Item]) -> float:
    chosen = [item for item in items if bool(item[1]["answers"]["text"]) is answerable]
    scores = [score(p["prediction_text"], r["answers"]["text"])[index] for p, r in chosen]
    # As the stock task gives it: 0 where there is no such question.
    return 100.0 * sum(scores) / len(scores) if scores else 0.0


def _best(index: int, items: list[_Item]) -> float:
    """The score if every question above the best threshold counts as answered "no answer"."""
    rows = sorted(
        (
            p["no_answer_probability"],
            score(p["prediction_text"], r["answers"]["text"])[index],
            not r["answers"]["text"],
            not says_no_answer(p["prediction_text"]),
        )
        for p, r in items
    )
    # With the lowest threshold nothing is answered: right are the questions without an answer.
    current = best = float(sum(no_answer for *_, no_answer, _ in rows))
    for _, points, no_answer, answered in rows:
        if not no_answer:
            current += points
        elif answered:
            current -= 1
        best = max(best, current)
    return 100.0 * best / len(rows)
