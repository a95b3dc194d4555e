"""SQuAD 2.0 as in lm-eval, and with a prompt that invites the answer "unanswerable"."""

from __future__ import annotations

from functools import partial
from typing import Any

from lm_eval.tasks.squadv2.task import SQuAD2

from llama_fast.eval.suite.answers import exact_match, normalise, token_f1

__all__ = ["SquadV2", "SquadV2NoAnswer"]

# In the words of the data set's paper, where a question without an answer is "unanswerable".
INSTRUCTION = (
    "Answer the question with words from the background. If the background does not answer it, "
    "answer: unanswerable"
)
# Answers that say so, in the normalised form of the metric.
NO_ANSWERS = frozenset(
    {"unanswerable", "question is unanswerable", "no answer", "not answerable", "na",
     "cannotanswer", "not in background", "background does not answer it",
     "background does not answer question"}
)  # fmt: skip

_Item = tuple[dict[str, Any], dict[str, Any]]


class SquadV2(SQuAD2):
    """The harness's task ``squadv2``, which may lack splits here.

    Scores are in percent, as in the official script (Rajpurkar et al. 2018): ``exact`` and ``f1``
    over all questions, ``HasAns_*`` and ``NoAns_*`` over those with and without an answer,
    ``best_*`` with the best threshold on the probability of "unanswerable".
    """

    NAME = "squadv2"

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config=config)
        self._config.task = self.NAME
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


class SquadV2NoAnswer(SquadV2):
    """SQuAD 2.0 in which a model can say that there is no answer; for the preset of the paper.

    The harness's prompt does not mention that a question may have no answer, and only an empty text
    counts as saying so, which leaves ``exact`` at 50 for a model that is always right. Here the
    prompt asks for "unanswerable" in that case, and an answer of :data:`NO_ANSWERS` counts as an
    empty one. The Llama 2 paper gives no prompt.
    """

    NAME = "squadv2_no_answer"

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The prompt: the instruction, and the harness's title, background and question."""
        return f"{INSTRUCTION}\n\n{super().doc_to_text(doc)}"

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """A question's scores; see the class."""
        text, likelihood = results
        return super().process_results(doc, ["" if says_no_answer(text) else text, likelihood])


def says_no_answer(text: str) -> bool:
    """Whether an answer says that there is none: its first line, without case and punctuation."""
    line = text.strip().partition("\n")[0]
    return normalise(line) in NO_ANSWERS


def score(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 of a prediction, each the maximum over the answers.

    An empty list of answers means that the question has none; an empty prediction says so.
    """
    golds = [gold for gold in answers if gold.strip()] or [""]
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
            bool(p["prediction_text"]),
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
