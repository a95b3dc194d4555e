"""The benchmarks for a purpose, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PURPOSES", "Purpose", "purpose"]


@dataclass(frozen=True)
class Purpose:
    """A purpose of an evaluation.

    Attributes:
        name: as typed.
        what: the purpose in words.
        parts: names of the suite's benchmarks to ask.
        why: what decides.
        minutes: minutes of the evaluation unless the user says otherwise.
        needs_code: whether programs of the model are run (`--allow-code`).
    """

    name: str
    what: str
    parts: tuple[str, ...]
    why: str
    minutes: float
    needs_code: bool = False


_EASY = ("HellaSwag", "PIQA", "ARC-Easy", "WinoGrande")
_ALL = (
    "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC-Easy", "ARC-Challenge", "OpenBookQA",
    "CommonsenseQA", "NaturalQuestions", "TriviaQA", "SQuAD", "QuAC", "BoolQ", "GSM8K", "MATH",
    "MMLU", "BBH", "AGIEval",
)  # fmt: skip

PURPOSES = {
    purpose.name: purpose
    for purpose in (
        Purpose(
            "training",
            "a base model while it is trained",
            _EASY,
            "likelihoods of texts: they rise from the first billion tokens on, without noise from "
            "generated text, and cost one pass a question; MMLU, BBH and mathematics stay at "
            "chance for long",
            5,
        ),
        Purpose(
            "base",
            "a finished base model, beside the Llama 2 paper",
            _ALL,
            "every group of the paper's Table 3 but code",
            60,
        ),
        Purpose(
            "chat",
            "a chat model",
            ("MMLU", "BBH", "GSM8K", "TriviaQA", "SQuAD", "BoolQ"),
            "answers to questions that users ask: knowledge, reasoning in steps, reading; "
            "likelihoods of endings (HellaSwag, PIQA) fall with instruction tuning without a loss "
            "that a user sees. Use --chat",
            30,
        ),
        Purpose(
            "code",
            "programming",
            ("HumanEval", "MBPP"),
            "programs that are run against tests; both, because 164 questions of HumanEval show "
            "differences of 10 points and more only",
            30,
            needs_code=True,
        ),
        Purpose(
            "safety",
            "truthfulness, toxicity and sentiment",
            ("MC2", "Toxic", "Sentiment"),
            "the paper's safety benchmarks; ToxiGen needs its classifier. BOLD's sentiment has no "
            "better or worse, only differences between groups",
            60,
        ),
        Purpose(
            "quick",
            "two minutes on a laptop",
            ("HellaSwag", "ARC-Easy", "PIQA"),
            "cheap and far from chance for every model; a smoke test, not a ranking",
            2,
        ),
        Purpose(
            "afternoon",
            "an afternoon on a GPU",
            ("HumanEval", "MBPP", *_ALL),
            "the whole suite",
            240,
            needs_code=True,
        ),
    )
}


def purpose(name: str) -> Purpose:
    """The purpose of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PURPOSES:
        raise ValueError(f"--purpose: expected one of {', '.join(PURPOSES)}, got {name!r}")
    return PURPOSES[name]
