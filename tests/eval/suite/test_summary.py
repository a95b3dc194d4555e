"""The table's arithmetic on results with known numbers, and the paper's own table."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from llama_fast.eval.report.final_table import PAPER_ROWS, suite_table
from llama_fast.eval.suite import PRESETS, paper_table, suite, summarise


def results(scores: dict[str, tuple[dict[str, Any], int]]) -> dict[str, Any]:
    return {
        "results": {task: values for task, (values, _) in scores.items()},
        "n-samples": {task: {"original": n, "effective": n} for task, (_, n) in scores.items()},
    }


def row(found: dict[str, Any], column: str, preset: str = "llama2-paper") -> Any:
    return next(score for score in summarise(found, preset) if score.column == column)


def test_a_column_is_the_mean_of_its_benchmarks() -> None:
    found = results(
        {
            "humaneval_sampled": (
                {"pass@1,create_test": 0.125, "pass@1_stderr,create_test": 0.03},
                164,
            ),
            "mbpp_sampled": ({"pass_at_1,none": 0.25, "pass_at_1_stderr,none": 0.04}, 500),
        }
    )
    code = row(found, "Code")
    assert code.value == pytest.approx((12.5 + 25.0) / 2)
    assert code.stderr == pytest.approx(5.0 / 2)  # sqrt(3^2 + 4^2) / 2
    assert (code.questions, code.missing) == (664, ())
    assert [(part.name, part.value) for part in code.parts] == [("HumanEval", 12.5), ("MBPP", 25.0)]


def test_subjects_count_by_their_questions() -> None:
    found = results(
        {
            "mmlu_5shot_anatomy": ({"acc,none": 0.5, "acc_stderr,none": 0.04}, 300),
            "mmlu_5shot_astronomy": ({"acc,none": 0.3, "acc_stderr,none": 0.09}, 100),
        }
    )
    mmlu = row(found, "MMLU")
    assert mmlu.value == pytest.approx(45.0)
    assert mmlu.stderr == pytest.approx(math.sqrt((300 * 4.0) ** 2 + (100 * 9.0) ** 2) / 400)
    assert mmlu.questions == 400
    assert len(mmlu.missing) == 55 and "mmlu_5shot_virology" in mmlu.missing


def test_subjects_count_by_their_size_however_many_questions_were_asked() -> None:
    """AGIEval with 13 questions a set: sets count by what they hold."""
    found = results(
        {
            "agieval_logiqa_en": ({"acc_norm,none": 0.25, "acc_norm_stderr,none": 0.1}, 13),
            "agieval_sat_en": ({"acc_norm,none": 0.5, "acc_norm_stderr,none": 0.2}, 13),
        }
    )
    found["n-samples"]["agieval_logiqa_en"]["original"] = 651
    found["n-samples"]["agieval_sat_en"]["original"] = 206
    agieval = row(found, "AGI Eval")
    assert agieval.value == pytest.approx((651 * 25.0 + 206 * 50.0) / 857)
    assert agieval.stderr == pytest.approx(math.hypot(651 * 10.0, 206 * 20.0) / 857)
    assert agieval.questions == 26


def test_math_weighs_gsm8k_and_math_alike() -> None:
    found = results(
        {
            "gsm8k_cot_number": (
                {"exact_match,strict-match": 0.4, "exact_match,flexible-extract": 0.9},
                9,
            ),
            "minerva_math_algebra": ({"exact_match,none": 0.1, "math_verify,none": 0.9}, 300),
            "minerva_math_precalc": ({"exact_match,none": 0.2, "math_verify,none": 0.9}, 100),
        }
    )
    maths = row(found, "Math")
    assert maths.value == pytest.approx((40.0 + 12.5) / 2)
    assert maths.stderr is None


def test_squad_is_in_percent_already_and_bold_in_none() -> None:
    found = results(
        {
            "squadv2_no_answer": ({"exact,none": 25.0, "exact_stderr,none": 1.0}, 100),
            "bold": ({"sentiment,none": -0.25, "sentiment_stderr,none": 0.01}, 50),
        }
    )
    reading = row(found, "Reading Comprehension")
    assert (reading.value, reading.missing) == (25.0, ("QuAC", "BoolQ"))
    bold = row(found, "BOLD")
    assert (bold.value, bold.stderr) == (-0.25, 0.01)
    assert bold.safety and bold.higher_is_better is None


def test_what_was_not_scored_is_missing() -> None:
    found = results(
        {
            "toxigen_generation": ({"unscored,none": 1.0}, 6514),
            "piqa": ({"acc_norm,none": float("nan"), "acc_norm_stderr,none": "N/A"}, 5),
            "winogrande": ({"acc,none": 0.5, "acc_stderr,none": "N/A"}, 5),
        }
    )
    toxigen = row(found, "ToxiGen")
    assert (toxigen.value, toxigen.questions, toxigen.missing) == (None, 0, ("Toxic",))
    commonsense = row(found, "Commonsense Reasoning")
    assert (commonsense.value, commonsense.stderr, commonsense.questions) == (50.0, None, 5)
    assert "PIQA" in commonsense.missing and len(commonsense.missing) == 7


# Table 45 of the paper: toxic completions in percent, for prompts about Asian, Mexican, Muslim,
# physically disabled, Jewish, Middle Eastern, Chinese, mentally disabled, Latino, Native American,
# women, Black, and LGBTQ people.
TABLE_45 = {
    "MPT 7B": "15.40 33.55 23.54 17.09 26.12 23.20 16.25 17.63 28.40 19.52 24.34 25.04 20.03",
    "MPT 30B": "15.74 31.49 19.04 21.68 26.82 30.60 13.87 24.36 16.51 32.68 15.56 25.21 20.32",
    "Falcon 7B": "9.06 18.30 17.34 8.29 19.40 12.99 10.07 10.26 18.03 15.34 17.32 16.75 15.73",
    "Falcon 40B": "19.59 29.61 25.83 13.54 29.85 23.40 25.55 29.10 23.20 17.31 21.05 23.11 23.52",
    "Llama 1 7B": "16.65 30.72 26.82 16.58 26.49 22.27 17.16 19.71 28.67 21.71 29.80 23.01 19.37",
    "Llama 1 13B": "18.80 32.03 25.18 14.72 28.54 21.11 18.76 15.71 30.42 20.52 27.15 25.21 21.85",
    "Llama 1 33B": "16.87 32.24 21.53 16.24 28.54 22.04 19.91 18.27 29.88 18.13 25.90 24.53 19.37",
    "Llama 1 65B": "14.27 31.59 21.90 14.89 23.51 22.27 17.16 18.91 28.40 19.32 28.71 22.00 20.03",
    "Llama 2 7B": "16.53 31.15 22.63 15.74 26.87 19.95 15.79 19.55 25.03 18.92 21.53 22.34 20.20",
    "Llama 2 13B": "21.29 37.25 22.81 17.77 32.65 24.13 21.05 20.19 35.40 27.69 26.99 28.26 23.84",
    "Llama 2 34B": "16.76 29.63 23.36 14.38 27.43 19.49 18.54 17.31 26.38 18.73 22.78 21.66 19.04",
    "Llama 2 70B": "21.29 32.90 25.91 16.92 30.60 21.35 16.93 21.47 30.42 20.12 31.05 28.43 22.35",
}


@pytest.mark.parametrize("model", TABLE_45)
def test_toxigen_is_the_mean_of_its_groups_as_in_the_paper(model: str) -> None:
    """Table 11 from Table 45, however many prompts a group has."""
    shares = [float(share) / 100 for share in TABLE_45[model].split()]
    scores: dict[str, Any] = {"toxic,none": 0.5, "toxic_stderr,none": 0.01}
    for at, share in enumerate(shares):
        scores |= {f"toxic.group {at},none": share, f"toxic.group {at}_stderr,none": 0.013}
    toxigen = row(results({"toxigen_generation": (scores, 6514)}), "ToxiGen")
    paper = next(one for one in paper_table().rows if one.name == model)
    assert toxigen.value == pytest.approx(paper.safety["ToxiGen"], abs=0.0051)
    assert toxigen.stderr == pytest.approx(1.3 / math.sqrt(13))
    assert (toxigen.questions, toxigen.missing) == (6514, ())


def test_toxigen_names_groups_without_prompts() -> None:
    scores = {"toxic,none": 0.5, "toxic.women,none": 0.2, "toxic.black,none": 0.4}
    toxigen = row(results({"toxigen_generation": (scores, 5)}), "ToxiGen")
    assert toxigen.value == pytest.approx(30.0) and toxigen.stderr is None
    assert toxigen.missing == ("11 of 13 groups",)


def test_truthfulqa_is_mc2_alone_and_the_paper_has_no_figure_of_its_kind() -> None:
    scores = {"acc,none": 0.4, "acc_stderr,none": 0.02}
    found = results({"truthfulqa_mc2": (scores, 817), "truthfulqa_mc1": ({"acc,none": 0.2}, 817)})
    truthful = row(found, "TruthfulQA MC2")
    assert (truthful.value, truthful.stderr, truthful.questions) == (40.0, 2.0, 817)
    assert truthful.missing == () and "Not comparable" in truthful.note
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(suite_table(summarise(found)))
    text = console.export_text()
    line = next(line for line in text.splitlines() if "TruthfulQA MC2" in line)
    assert "40.0" in line and line.count("–") == len(PAPER_ROWS)
    assert "fine-tuned GPT-3 judges" in " ".join(text.split())


@pytest.mark.parametrize("preset", PRESETS)
def test_an_empty_run_gives_every_column(preset: str) -> None:
    scores = summarise({"results": {}}, preset)
    assert [s.column for s in scores] == [c.name for c in suite(preset).columns]
    assert [s.column for s in scores[:8]] == list(paper_table().columns)
    assert all(score.value is None for score in scores)
    json.dumps([score.to_dict() for score in scores])


def test_paper_table_agrees_with_the_scores_it_is_made_of() -> None:
    table = paper_table()
    rows = {row.name: row for row in table.rows}
    assert len(rows) == 12
    # Llama 2 70B: GSM8K 56.8 and MATH 13.5 (Table 25); HumanEval 29.9 and MBPP 45.0 (Table 21).
    assert rows["Llama 2 70B"].scores["Math"] == pytest.approx((56.8 + 13.5) / 2, abs=0.06)
    assert rows["Llama 2 70B"].scores["Code"] == pytest.approx((29.9 + 45.0) / 2, abs=0.06)
    assert rows["Llama 1 7B"].scores["Math"] == pytest.approx((11.0 + 2.9) / 2, abs=0.01)
    # The footnote: these two are GSM8K alone, MATH being 2.5 and 3.9.
    assert rows["Llama 2 7B"].scores["Math"] == 14.6
    assert rows["Llama 2 13B"].scores["Math"] == 28.7
    assert "GSM8K alone" in table.footnotes["Math"]
    assert rows["Falcon 7B"].safety == {"TruthfulQA": 25.95, "ToxiGen": 14.53}
