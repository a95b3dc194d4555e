"""QuAC: questions in a dialogue about a passage (Choi et al. 2018, arXiv 1808.07036).

The prompt is the passage's title and text and the dialogue so far with the annotator's answers, in
a form of this project. GPT-3's (Brown et al. 2020, appendix G) is like it, but has TITLE: and
PARAGRAPH:, and one line break between question and answer. The passages end with the word
CANNOTANSWER, which is the answer to questions without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from llama_fast.eval.suite.answers import token_f1
from llama_fast.eval.suite.own import OwnTask, generation

__all__ = ["Quac", "human_f1", "references", "score"]

NO_ANSWER = "CANNOTANSWER"
# Questions with less human agreement are not scored (Choi et al. 2018, section 5).
MIN_HUMAN_F1 = 0.4


class Quac(OwnTask):
    """The validation questions of QuAC, each with the preceding dialogue.

    Metrics: ``f1`` as in the paper, over questions with enough human agreement; ``f1_all`` over all
    questions; ``heq_q``, the share of questions answered at least as well as by humans.
    """

    SETTINGS: ClassVar[dict[str, Any]] = {
        "task": "quac",
        "dataset_path": "allenai/quac",
        "validation_split": "validation",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answers[0]}}",
        "generation_kwargs": generation(64),
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("f1", "f1_all", "heq_q")
        ],
    }

    def questions(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """One question per turn; ``answers`` has all annotators' answers."""
        questions = []
        for row in rows:
            head = (
                f"Title: {row['wikipedia_page_title']} - {row['section_title']}\n\n"
                f"Passage: {row['context']}\n\n"
            )
            dialogue = ""
            turns = zip(
                row["turn_ids"],
                row["questions"],
                _texts(row["answers"]),
                row["orig_answers"]["texts"],
                strict=True,
            )
            for name, question, answers, said in turns:
                dialogue += f"Q: {question}\n\nA:"
                questions.append(
                    {
                        "id": name,
                        "dialogue_id": name.partition("_q#")[0],
                        "prompt": head + dialogue,
                        "answers": list(answers),
                    }
                )
                dialogue += f" {said}\n\n"
        return questions

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """The question's metrics; see the class."""
        golds = references(doc["answers"])
        f1 = score(results[0].strip(), golds)
        people = human_f1(golds)
        if people < MIN_HUMAN_F1:
            return {"f1_all": f1}
        return {"f1": f1, "f1_all": f1, "heq_q": float(f1 >= people)}


def _texts(answers: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Sequence[Sequence[str]]:
    """All annotators' answers by question, from either of the hub's formats."""
    if isinstance(answers, Mapping):
        result: Sequence[Sequence[str]] = answers["texts"]
        return result
    return [answer["texts"] for answer in answers]


def references(answers: Sequence[str]) -> list[str]:
    """The reference answers: CANNOTANSWER if at least half are, else all others."""
    spans = [answer for answer in answers if answer != NO_ANSWER]
    return [NO_ANSWER] if 2 * len(spans) <= len(answers) else spans


def score(prediction: str, golds: Sequence[str]) -> float:
    """F1 of a prediction against several annotators' answers, from 0 to 1.

    The best F1 over all answers but one, averaged over the answer left out, so that a model is
    compared with as many answers as each human.
    """
    points = [_f1(prediction, gold) for gold in golds]
    return _leave_one_out([points] * len(points))


def human_f1(golds: Sequence[str]) -> float:
    """Mean over annotators of the best F1 against the others; 1.0 for a single one."""
    if len(golds) == 1:
        return 1.0
    return _leave_one_out([[_f1(gold, other) for other in golds] for gold in golds])


def _leave_one_out(points: list[list[float]]) -> float:
    """Mean over i of the maximum of ``points[i]`` without its i-th entry."""
    if len(points) == 1:
        return points[0][0]
    best = [max(row[:i] + row[i + 1 :]) for i, row in enumerate(points)]
    return sum(best) / len(best)


def _f1(prediction: str, gold: str) -> float:
    if NO_ANSWER in (prediction, gold):
        return float(prediction == gold)
    return token_f1(prediction, gold)
