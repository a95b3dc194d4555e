"""Chance level and headroom: of tasks, of means of benchmarks, and of other tasks with options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llama_fast.eval.choose.cards import cards
from llama_fast.eval.report import read_run
from llama_fast.eval.report.html import write_page
from llama_fast.eval.report.levels import (
    Levels,
    levels_of_options,
    levels_of_parts,
    levels_of_task,
)
from llama_fast.eval.report.questions import read_questions
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.suite import PRESETS, suite
from llama_fast.eval.suite.subjects import AGIEVAL, BBH
from tests.eval.report.runs import FLOAT32, SUITE
from tests.paths import data_file

SCALELESS = ("ToxiGen", "BOLD")  # nothing is guessed


@pytest.mark.parametrize("preset", PRESETS)
def test_every_score_of_the_suite_has_its_levels(preset: str) -> None:
    for column in suite(preset).columns:
        for part in column.parts:
            for task in (part.load, *part.tasks):
                levels = levels_of_task(task)
                assert (levels is None) is (column.name in SCALELESS), task
                assert levels is None or 0 <= levels.chance < levels.top <= 100


def test_headroom_is_measured_from_the_human_level_where_there_is_one() -> None:
    assert levels_of_task("hellaswag") == Levels(25.0, 95.6)
    assert Levels(25.0, 95.6).headroom(42.3) == pytest.approx(53.3)
    assert Levels(25.0, 95.6).headroom(97.0) == pytest.approx(-1.4)
    assert levels_of_task("gsm8k") == levels_of_task("gsm8k_cot_number") == Levels(0.0, 100.0)
    assert levels_of_parts(["PIQA", "GSM8K"]) == Levels(25.0, pytest.approx((94.9 + 100) / 2))
    assert levels_of_parts([]) is None and levels_of_parts(["PIQA", "no such"]) is None
    assert levels_of_task("no such") is None


def test_tasks_of_bbh_agree_with_their_options_and_with_the_whole() -> None:
    whole = cards()["BBH"].chance
    chances = {name: levels_of_task(f"bbh_3shot_{name}") for name in BBH}
    assert all(chances.values())
    for name, levels in chances.items():
        assert levels is not None and levels == levels_of_task(f"bbh_cot_fewshot_{name}")
        rows = data_file(f"hub/SaylorTwift/bbh/{name}/test.jsonl").read_text().splitlines()
        options = [len(set(re.findall(r"^\(([A-Z])\)", json.loads(row)["input"], re.M)))
                   for row in rows]  # fmt: skip
        if all(options):  # a few rows of the 250
            few = sum(100 / n for n in options) / len(options)
            assert levels.chance == pytest.approx(few, abs=9), name
    mean = sum(levels.chance for levels in chances.values() if levels) / len(BBH)
    assert mean == pytest.approx(whole, abs=1.5)


def test_tasks_of_agieval_agree_with_their_options() -> None:
    for task in AGIEVAL:
        folder = task.replace("_", "-")
        if task == "agieval_logiqa_en":  # not among the files
            continue
        rows = data_file(f"hub/hails/{folder}/default/test.jsonl").read_text().splitlines()
        (count,) = {len(json.loads(row)["choices"]) for row in rows}
        levels = levels_of_task(task)
        assert levels is not None and levels.chance == 100 / count


def test_other_tasks_are_guessed_by_their_options() -> None:
    run = read_run(FLOAT32)
    for task, chance in (("piqa", 50.0), ("hellaswag", 25.0), ("gsm8k", None)):
        if task not in run.results["results"]:
            continue
        score = score_of(run.results["results"][task])
        assert score is not None
        levels = levels_of_options(read_questions(run, task, score))
        assert (levels and levels.chance) == (chance and pytest.approx(chance))
    assert levels_of_options([]) is None


def test_the_page_has_them_beside_every_score(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", read_run(SUITE)).read_text()
    found = re.search(r'id="data">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    for kind in ("columns", "tasks", "groups"):
        for item in data[kind]:
            known = item["scores"][0] is not None and item["percent"]
            assert item["chance"] is not None or not known, item["name"]
    (mmlu,) = [column for column in data["columns"] if column["name"] == "MMLU"]
    assert (mmlu["chance"], mmlu["top"]) == (25.0, 89.8)
