"""The benchmark suite of the Llama 2 paper, and the same benchmarks with lm-eval's settings.

A suite is a list of columns. A column's value is the mean of its parts; a part's value is the mean
over all questions of its tasks (MMLU's 57 tasks are weighted by their number of questions), for
ToxiGen the mean over target groups.

Where the paper is silent, its predecessor decides (Touvron et al. 2023, arXiv 2302.13971): MATH
with the four shots of Minerva, GSM8K with the eight of Wei et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from llama_fast.eval.suite.subjects import AGIEVAL, BBH, MATH, MMLU

__all__ = ["PRESETS", "Column", "Part", "Suite", "suite"]


@dataclass(frozen=True)
class Part:
    """A benchmark within a column.

    Attributes:
        name: the benchmark's usual name.
        load: the task or group to load.
        tasks: names of the tasks in the results; all questions have equal weight.
        metric: key of the score in a task's results, such as "acc,none".
        shots: number of examples before each question.
        scale: factor that brings the metric to percent.
        subgroups: number of subgroups, if the score is the plain mean of their scores (metrics
            `<metric>.<subgroup>`), however many questions each has; else 0.
    """

    name: str
    load: str
    tasks: tuple[str, ...]
    metric: str
    shots: int
    scale: float = 100.0
    subgroups: int = 0


@dataclass(frozen=True)
class Column:
    """A column of the table: the mean of its parts.

    Attributes:
        name: the paper's name, if its figure measures the same.
        parts: the benchmarks in it.
        safety: whether it belongs to the safety table rather than to Table 3.
        higher_is_better: None if neither direction is better (the sentiment of BOLD).
        note: caveat on the comparison with the paper; may be empty.
    """

    name: str
    parts: tuple[Part, ...]
    safety: bool = False
    higher_is_better: bool | None = True
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """A preset: its columns in order."""

    name: str
    columns: tuple[Column, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All benchmarks of the suite, in order."""
        return tuple(part for column in self.columns for part in column.parts)


def _one(name: str, task: str, metric: str, shots: int = 0, scale: float = 100.0) -> Part:
    return Part(name, task, (task,), metric, shots, scale)


_SAFETY = (
    # Named differently from the paper's column, so that no figure of the paper is shown beside it.
    Column(
        "TruthfulQA MC2",
        (_one("MC2", "truthfulqa_mc2", "acc,none"),),
        safety=True,
        note=(
            "Multiple choice: the share of probability on true answers. Not comparable with the "
            "paper's TruthfulQA, the share of free answers that two fine-tuned GPT-3 judges call "
            "truthful and informative; these judges are no longer available. The free answers "
            "(truthfulqa_gen) are scored by overlap with the reference answers only."
        ),
    ),
    Column(
        "ToxiGen",
        # Table 11 is the mean of the rows of Table 45, not weighted by prompts.
        (
            Part(
                "Toxic",
                "toxigen_generation",
                ("toxigen_generation",),
                "toxic,none",
                0,
                subgroups=13,
            ),
        ),
        safety=True,
        higher_is_better=False,
        note=(
            "Share of completions that the RoBERTa classifier calls toxic: the mean of the shares "
            "of the 13 target groups."
        ),
    ),
    Column(
        "BOLD",
        (_one("Sentiment", "bold", "sentiment,none", scale=1.0),),
        safety=True,
        higher_is_better=None,
        note="Mean VADER sentiment from -1 to 1; per subgroup under the task's own results.",
    ),
)

_AGI_NOTE = "0 shots: the paper's 3-5 shots are not part of the published test sets."

_LLAMA2 = Suite(
    "llama2-paper",
    (
        Column(
            "Code",
            (
                _one("HumanEval", "humaneval_sampled", "pass@1,create_test"),
                _one("MBPP", "mbpp_sampled", "pass_at_1,none", shots=3),
            ),
        ),
        Column(
            "Commonsense Reasoning",
            (
                _one("PIQA", "piqa", "acc_norm,none"),
                _one("SIQA", "social_iqa_norm", "acc_norm,none"),
                _one("HellaSwag", "hellaswag", "acc_norm,none"),
                # Its options share one continuation, so length normalisation has no effect.
                _one("WinoGrande", "winogrande", "acc,none"),
                _one("ARC-Easy", "arc_easy", "acc_norm,none"),
                _one("ARC-Challenge", "arc_challenge", "acc_norm,none"),
                _one("OpenBookQA", "openbookqa_ratio", "acc_mutual_info,none"),
                _one("CommonsenseQA", "commonsense_qa_7shot", "acc,none", shots=7),
            ),
        ),
        Column(
            "World Knowledge",
            (
                _one("NaturalQuestions", "nq_open_5shot", "exact_match,remove_whitespace", 5),
                _one("TriviaQA", "triviaqa_wiki_5shot", "exact_match,remove_whitespace", 5),
            ),
        ),
        Column(
            "Reading Comprehension",
            (
                _one("SQuAD", "squadv2_no_answer", "exact,none", scale=1.0),
                _one("QuAC", "quac", "f1,none"),
                _one("BoolQ", "boolq_ratio", "acc_mutual_info,none"),
            ),
        ),
        Column(
            "Math",
            (
                _one("GSM8K", "gsm8k_cot_number", "exact_match,strict-match", shots=8),
                Part("MATH", "minerva_math", MATH, "exact_match,none", 4),
            ),
        ),
        Column(
            "MMLU",
            (Part("MMLU", "mmlu_5shot", tuple(f"mmlu_5shot_{s}" for s in MMLU), "acc,none", 5),),
        ),
        Column(
            "BBH",
            (
                Part(
                    "BBH", "bbh_3shot", tuple(f"bbh_3shot_{s}" for s in BBH), "exact_match,strip", 3
                ),
            ),
        ),
        Column(
            "AGI Eval",
            (Part("AGIEval", "agieval_nous", AGIEVAL, "acc_norm,none", 0),),
            note=_AGI_NOTE,
        ),
        *_SAFETY,
    ),
)

_LM_EVAL = Suite(
    "lm-eval",
    (
        Column(
            "Code",
            (
                _one("HumanEval", "humaneval", "pass@1,create_test"),
                _one("MBPP", "mbpp", "pass_at_1,none", shots=3),
            ),
        ),
        Column(
            "Commonsense Reasoning",
            (
                _one("PIQA", "piqa", "acc_norm,none"),
                _one("SIQA", "social_iqa", "acc,none"),
                _one("HellaSwag", "hellaswag", "acc_norm,none"),
                _one("WinoGrande", "winogrande", "acc,none"),
                _one("ARC-Easy", "arc_easy", "acc_norm,none"),
                _one("ARC-Challenge", "arc_challenge", "acc_norm,none"),
                _one("OpenBookQA", "openbookqa", "acc_norm,none"),
                _one("CommonsenseQA", "commonsense_qa", "acc,none"),
            ),
        ),
        Column(
            "World Knowledge",
            (
                _one("NaturalQuestions", "nq_open", "exact_match,remove_whitespace"),
                _one("TriviaQA", "triviaqa", "exact_match,remove_whitespace"),
            ),
        ),
        Column(
            "Reading Comprehension",
            (
                _one("SQuAD", "squadv2", "exact,none", scale=1.0),
                _one("QuAC", "quac", "f1,none"),
                _one("BoolQ", "boolq", "acc,none"),
            ),
        ),
        Column(
            "Math",
            (
                _one("GSM8K", "gsm8k", "exact_match,strict-match", shots=5),
                Part("MATH", "minerva_math", MATH, "exact_match,none", 4),
            ),
        ),
        Column("MMLU", (Part("MMLU", "mmlu", tuple(f"mmlu_{s}" for s in MMLU), "acc,none", 0),)),
        Column(
            "BBH",
            (
                Part(
                    "BBH",
                    "bbh",
                    tuple(f"bbh_cot_fewshot_{s}" for s in BBH),
                    "exact_match,get-answer",
                    3,
                ),
            ),
        ),
        Column(
            "AGI Eval",
            (Part("AGIEval", "agieval_nous", AGIEVAL, "acc_norm,none", 0),),
            note=_AGI_NOTE,
        ),
        *_SAFETY,
    ),
)

PRESETS: dict[str, Suite] = {preset.name: preset for preset in (_LLAMA2, _LM_EVAL)}
# The command line's short name for the paper's suite.
_ALIASES = {"llama2": "llama2-paper"}


def suite(preset: str) -> Suite:
    """The preset of that name: "llama2-paper" (or "llama2") or "lm-eval".

    Raises:
        ValueError: there is no such preset.
    """
    name = _ALIASES.get(preset, preset)
    if name not in PRESETS:
        near = get_close_matches(preset, [*PRESETS, *_ALIASES], cutoff=0.3)
        raise ValueError(
            f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return PRESETS[name]
