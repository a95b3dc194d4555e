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
        "n-samples": {task: {"original": 9999, "effective": n} for task, (_, n) in scores.items()},
    }


def row(found: dict[str, Any], column: str, preset: str = "llama2-paper") -> Any:
    return next(score for score in summarise(found, preset) if score.column == column)


def test_a_column_is_the_mean_of_its_benchmarks() -> None:
    found = results(
        {
            "humaneval": ({"pass@1,create_test": 0.125, "pass@1_stderr,create_test": 0.03}, 164),
            "mbpp": ({"pass_at_1,none": 0.25, "pass_at_1_stderr,none": 0.04}, 500),
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


def test_math_weighs_gsm8k_and_math_alike() -> None:
    found = results(
        {
            "gsm8k_cot": (
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
            "squadv2": ({"exact,none": 25.0, "exact_stderr,none": 1.0}, 100),
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
