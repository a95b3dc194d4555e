"""The draw of questions: shares of strata, smaller draws in larger ones, and real benchmarks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_fast.eval.limits import Choice, Limits, draw, ids_of, strata_of
from llama_fast.eval.suite import load_tasks
from tests import paths

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def mirror() -> Path:
    return paths.mirror()


def test_every_beginning_has_each_stratum_s_share() -> None:
    strata = [("a",)] * 600 + [("b",)] * 300 + [("c",)] * 99 + [("d",)]
    order = draw(strata, 0)
    assert sorted(order) == list(range(1000))
    for n in (10, 37, 100, 500):
        counts = Counter(strata[at][0] for at in order[:n])
        for name, size in (("a", 600), ("b", 300), ("c", 99)):
            # A stratum's count is its share rounded up or down; the cut adds at most one.
            assert abs(counts[name] - n * size / 1000) <= 2, (n, name)


def test_each_question_is_as_likely_as_any_other() -> None:
    """The plain mean over a draw is unbiased: the inclusion probabilities are equal."""
    strata = [("a",)] * 7 + [("b",)] * 2 + [("c",)]
    trials, n = 4000, 4
    counts = np.zeros(10)
    for seed in range(trials):
        counts[draw(strata, seed)[:n]] += 1
    # Five standard errors of a share of 0.4.
    assert np.abs(counts / trials - n / 10).max() < 5 * np.sqrt(0.4 * 0.6 / trials)


def test_a_draw_is_by_seed_and_task_and_a_smaller_one_is_part_of_it() -> None:
    rows = [{"level": f"Level {at % 5}", "question": at} for at in range(500)]

    def ids(limit: int, seed: int = 0, task: str = "math") -> tuple[int, ...]:
        choice = Limits(limit, seed=seed).choose(task, rows)
        assert choice is not None and choice.by == ("level",) and choice.seed == seed
        return choice.ids

    assert ids(50) == ids(50) and list(ids(50)) == sorted(ids(50))
    assert set(ids(20)) < set(ids(50))
    assert ids(50, seed=1) != ids(50) != ids(50, task="other")
    assert Counter(rows[at]["level"] for at in ids(50)) == {f"Level {at}": 10 for at in range(5)}
    assert Limits(500).choose("math", rows) is None and Limits().choose("math", rows) is None


def test_the_first_questions() -> None:
    limits = Limits.parse("3,piqa=2", is_first=True)
    rows = [{"level": at} for at in range(5)]
    assert limits.choose("piqa", rows) == Choice("first", None, (), (0, 1))
    assert limits.choose("boolq", rows) == Choice("first", None, (), (0, 1, 2))
    with pytest.raises(ValueError, match="first: expected N or TASK=N"):
        Limits.parse("x", is_first=True)


def test_fields_that_say_nothing_of_the_kind_are_left_out() -> None:
    rows = [{"level": "1", "title": str(at), "id": f"{at:x}", "type": "a"} for at in range(4)]
    assert strata_of(rows) == ((), [()] * 4)  # one value, or each question its own


def test_hellaswag_is_spread_over_its_sources(mirror: Path) -> None:
    """Its first rows are all captions of videos; the rest is articles."""
    rows = load_tasks(["hellaswag"], data_dir=mirror)["tasks"]["hellaswag"].eval_docs
    sources = [name.split("~")[0] for name in rows["source_id"]]
    share = sources.count("activitynet") / len(sources)
    choice = Limits(200).choose("hellaswag", rows)
    assert choice is not None and choice.by == ("source_id", "split_type")
    assert abs(sum(sources[at] == "activitynet" for at in choice.ids) - 200 * share) <= 2
    assert set(sources[:200]) == {"activitynet"} and share < 0.5


@pytest.mark.parametrize(
    ("row", "by"),
    [
        ({"problem": "x", "level": "Level {}", "type": "Algebra"}, ("level",)),  # MATH
        ({"id": "Mercury_{}", "question": "x"}, ()),  # ARC, of one exam
        ({"prompt": "x", "groups": ["women", "{}"]}, ("groups",)),  # ToxiGen
        ({"title": "Article {}", "context": "x"}, ("title",)),  # SQuAD
        ({"question": "x", "subject": "subject {}"}, ("subject",)),  # MMLU in one table
    ],
)
def test_the_fields_of_benchmarks(row: dict[str, Any], by: tuple[str, ...]) -> None:
    def filled(value: Any, at: int) -> Any:
        if isinstance(value, list):
            return [filled(item, at) for item in value]
        return value.format(at)

    rows = [{name: filled(value, at % 4) for name, value in row.items()} for at in range(16)]
    assert strata_of(rows)[0] == by


def test_exams_are_sources() -> None:
    rows = [{"id": f"{exam}_{at}"} for exam in ("Mercury", "AKDE&ED") for at in range(3)]
    assert strata_of(rows) == (("id",), [("Mercury",)] * 3 + [("AKDE&ED",)] * 3)


def test_the_ids_of_a_run() -> None:
    results = {
        "n-samples": {"piqa": {"original": 9, "effective": 3}, "boolq": {"effective": 2}},
        "drawn": {"piqa": {"how": "drawn", "ids": [1, 4, 7]}},
    }
    assert ids_of(results, "piqa") == [1, 4, 7] and ids_of(results, "boolq") == [0, 1]
    assert ids_of(results, "arc") is None
