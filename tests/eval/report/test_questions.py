"""Logged samples as questions, held against the harness's own scores."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from llama_fast.eval.report import read_run
from llama_fast.eval.report.calibration import (
    calibrate,
    confidences,
    has_long_options,
)
from llama_fast.eval.report.questions import read_questions
from llama_fast.eval.report.scores import score_of
from tests.eval.report.runs import BFLOAT16, FLOAT32, QUESTIONS

CHOICE = ["arc_easy", "hellaswag", "piqa", "winogrande"]


@pytest.mark.parametrize("folder", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("task", CHOICE)
def test_what_is_picked_gives_the_harness_s_scores(folder: Path, task: str) -> None:
    run = read_run(folder)
    row = run.results["results"][task]
    for metric in ("acc", "acc_norm"):
        if f"{metric},none" not in row:
            continue
        score = score_of(row, metric)
        assert score is not None
        questions = read_questions(run, task, score)
        assert len(questions) == QUESTIONS[task]
        assert all(question.gold is not None for question in questions)
        right = [question.picked == question.gold for question in questions]
        assert right == [question.is_right for question in questions]
        assert np.mean(right) == pytest.approx(row[f"{metric},none"])
    # Softmax keeps the order: what is likeliest is what `acc` counts.
    assert np.mean([right for _, right in confidences(questions)]) == row["acc,none"]


def test_the_parts_of_a_multiple_choice_question() -> None:
    run = read_run(FLOAT32)
    score = score_of(run.results["results"]["winogrande"])
    assert score is not None
    first = read_questions(run, "winogrande", score)[0]
    assert first.prompt == "Sarah was a much better surgeon than Maria so "
    assert [option.text for option in first.options] == [
        "Sarah always got the easier cases.",
        "Maria always got the easier cases.",
    ]
    assert first.gold == 1 and first.picked == 1
    score = score_of(run.results["results"]["arc_easy"])
    assert score is not None
    first = read_questions(run, "arc_easy", score)[0]
    assert first.prompt.endswith("most food webs?\nAnswer:") and first.gold == 0
    assert first.options[0].text == "Sunlight is the source of energy for nearly all ecosystems."
    assert first.options[0].logprob == pytest.approx(-23.54, abs=0.01)


def test_the_parts_of_a_written_answer() -> None:
    run = read_run(FLOAT32)
    row = run.results["results"]["gsm8k"]
    for key, extracted in (("exact_match,strict-match", "[invalid]"), (None, "[invalid]")):
        score = score_of(row, key)
        assert score is not None and score.key == "exact_match,strict-match"
        first = read_questions(run, "gsm8k", score)[0]
        assert first.options == () and first.target.endswith("#### 18") and first.score == 0
        assert first.output.startswith(" ") and first.extracted == extracted
    flexible = score_of(row, "exact_match,flexible-extract")
    assert flexible is not None
    assert read_questions(run, "gsm8k", flexible)[0].extracted != "[invalid]"


def sample(metric: str, value: float, options: list[tuple[str, str, float]]) -> dict[str, object]:
    """One as the harness logs it; an option: context, continuation, log-probability."""
    return {
        "doc_id": 0,
        "target": "1",
        "arguments": {
            f"gen_args_{at}": {"arg_0": context, "arg_1": text}
            for at, (context, text, _) in enumerate(options)
        },
        "resps": [[[str(logprob), "False"]] for *_, logprob in options],
        "filtered_resps": [[str(logprob), "False"] for *_, logprob in options],
        "filter": "none",
        "metrics": ["acc", metric],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "acc": 0.0,
        metric: value,
    }


def write(folder: Path, samples: list[dict[str, object]], metric: str) -> None:
    folder.mkdir()
    row = {"acc,none": 0.0, f"{metric},none": 1.0}
    (folder / "results.json").write_text(json.dumps({"results": {"t": row}}))
    lines = [json.dumps(one) for one in samples]
    (folder / "samples_t.jsonl").write_text("\n".join(lines) + "\n")


def test_unconditional_log_probabilities_are_taken_off(tmp_path: Path) -> None:
    asked = [("Q:", " a", -1.0), ("Q:", " b", -2.0), ("", " a", -1.0), ("", " b", -9.0)]
    write(tmp_path / "run", [sample("acc_mutual_info", 1.0, asked)], "acc_mutual_info")
    run = read_run(tmp_path / "run")
    score = score_of(run.results["results"]["t"])
    assert score is not None and score.metric == "acc_mutual_info"
    (question,) = read_questions(run, "t", score)
    assert [o.unconditional for o in question.options] == [-1.0, -9.0]
    assert question.picked == 1 and question.gold == 1
    # Calibration is of P(option | context): -1 against -2, and the likeliest is wrong.
    assert confidences([question]) == [(pytest.approx(1 / (1 + math.exp(-1))), False)]


def test_a_sample_that_is_none_is_named(tmp_path: Path) -> None:
    shutil.copytree(FLOAT32, tmp_path / "run")
    path = tmp_path / "run" / "samples_piqa.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({"filter": "none"})
    path.write_text("\n".join(lines))
    run = read_run(tmp_path / "run")
    score = score_of(run.results["results"]["piqa"])
    assert score is not None
    with pytest.raises(ValueError, match=r"samples_piqa\.jsonl:5: expected a sample"):
        read_questions(run, "piqa", score)


def test_calibration_by_hand() -> None:
    pairs = [(0.55, True), (0.55, False), (0.6, True), (0.91, True), (0.99, False), (1.0, True)]
    found = calibrate(pairs)
    assert found is not None and found.n == 6
    # 0.6 is the upper bound of its bin (Guo et al.: half-open from above).
    low, high = found.bins
    assert (low.low, low.high, low.n) == (0.5, 0.6, 3) and high.n == 3
    assert low.accuracy == pytest.approx(2 / 3) and low.confidence == pytest.approx(1.7 / 3)
    by_hand = 3 / 6 * abs(2 / 3 - 1.7 / 3) + 3 / 6 * abs(2 / 3 - 2.9 / 3)
    assert found.ece == pytest.approx(by_hand, abs=1e-12)
    assert calibrate([]) is None


def test_a_model_that_knows_what_it_knows_has_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.25, 1.0, 200_000)
    right = generator.random(200_000) < confidence
    found = calibrate(list(zip(confidence.tolist(), right.tolist(), strict=True)))
    # The standard error of a bin's accuracy is at most 0.5 / sqrt(13,000).
    assert found is not None and found.ece < 0.01
    surer = [(min(1.0, c + 0.2), r) for c, r in zip(confidence, right, strict=True)]
    worse = calibrate(surer)
    expected = np.mean([c for c, _ in surer]) - np.mean(right)
    assert worse is not None and worse.ece == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("n", [4, 60, 2000])
def test_the_floor_is_the_error_of_a_calibrated_model(n: int) -> None:
    """Exact for a few questions in a bin, normal for many; held against a simulation."""
    generator = np.random.default_rng(n)
    confidence = generator.uniform(0.25, 1.0, n)
    drawn = []
    for _ in range(400):
        right = generator.random(n) < confidence
        found = calibrate(list(zip(confidence.tolist(), right.tolist(), strict=True)))
        assert found is not None
        drawn.append(found.ece)
    # Four standard errors of the mean.
    error = 4 * float(np.std(drawn)) / 20
    assert found is not None and found.floor == pytest.approx(np.mean(drawn), abs=error)


def test_a_few_questions_have_a_high_floor() -> None:
    """Four questions that share a bin at 50 %: E|k - 2| / 4 for k of Binomial(4, 1/2)."""
    found = calibrate([(0.5, True), (0.5, False), (0.5, True), (0.5, True)])
    assert found is not None and found.floor == pytest.approx(12 / 16 / 4)


def test_long_options_say_little() -> None:
    run = read_run(FLOAT32)

    def is_long(task: str) -> bool:
        score = score_of(run.results["results"][task])
        assert score is not None
        return has_long_options(read_questions(run, task, score))

    # WinoGrande's options are names: what follows is the same.
    assert is_long("hellaswag") and is_long("piqa") and not is_long("winogrande")
    assert not is_long("gsm8k")  # no options at all
