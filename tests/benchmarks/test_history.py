"""The history of the benchmark suite: what a line keeps, what is compared, what is drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llama_fast.cli.bench import suite

history = suite("history")
results_ = suite("results")
MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu-amd-epyc-zen4.json"


def run(day: int, ratios: dict[str, dict[str, float]], processor: str = "cpu-a, 2 threads"):  # type: ignore[no-untyped-def]
    """A run on a day in November in which all cases are of the op "rope"."""
    return history.Run(
        commit=f"c{day}",
        date=f"2026-11-{day:02}T00:00:00+00:00",
        processor=processor,
        versions={"torch": "2.13.0"},
        quick=False,
        ops=dict.fromkeys(ratios, "rope"),
        ours_ms=dict.fromkeys(ratios, 1.0),
        ratios=ratios,
    )


def test_keeps_the_ratios_of_a_run(tmp_path: Path) -> None:
    arguments = [str(MEASURED), "--history", str(tmp_path), "--commit", "abc"]
    assert history.main([*arguments, "--date", "2026-11-30T02:00:00+02:00"]) == 0
    (line,) = (tmp_path / history.RUNS).read_text().splitlines()
    kept = json.loads(line)
    assert kept["commit"] == "abc" and kept["date"] == "2026-11-30T00:00:00+00:00"
    assert kept["processor"] == "cpu-amd-epyc-zen4, 2 threads"
    measured = json.loads(MEASURED.read_text())["results"]
    assert len(kept["ratios"]) == len(measured)
    first = measured[0]
    name = next(n for n in kept["ratios"] if first["case"]["title"] in n)
    for side in first["sides"][1:]:
        if side["samples_ms"]:
            assert kept["ratios"][name][side["implementation"]] == side["ratio_to_ours"]
    assert (tmp_path / history.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_same_commit_on_the_same_processor_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "h" / history.RUNS
    history.append(path, run(3, {"a": {"torch": 2.0}}))
    history.append(path, run(1, {"a": {"torch": 1.0}}))
    history.append(path, run(3, {"a": {"torch": 4.0}}, "cpu-b, 2 threads"))
    runs = history.append(path, run(3, {"a": {"torch": 3.0}}))
    assert runs == history.load(path)
    assert [(r.commit, r.processor[:5], r.ratios["a"]["torch"]) for r in runs] == [
        ("c1", "cpu-a", 1.0),
        ("c3", "cpu-b", 4.0),
        ("c3", "cpu-a", 3.0),
    ]


def test_means_are_over_the_cases_that_all_runs_have() -> None:
    old = run(1, {"a": {"torch": 2.0}, "b": {"torch": 8.0}, "gone": {"torch": 1000.0}})
    other = run(2, {"gone": {"torch": 1000.0}})
    new = run(3, {"a": {"torch": 4.0}, "b": {"torch": 9.0}, "new": {"torch": 1000.0, "x": 5.0}})
    points = history.means([old, other, new], "rope", "torch")
    assert [r.commit for r, _ in points] == ["c1", "c3"]
    assert [mean for _, mean in points] == pytest.approx([4.0, 6.0])
    assert [mean for _, mean in history.means([old, other, new], "rope", "x")] == pytest.approx([5])
    assert history.means([old, new], "swiglu", "torch") == []


def test_says_what_became_slower() -> None:
    before = [run(day, {"a": {"torch": 2.0 + day / 10, "x": 1.0}}) for day in (1, 2, 3)]
    elsewhere = [run(day, {"a": {"torch": 99.0}}, "cpu-b, 2 threads") for day in (4, 5, 6)]
    after = run(7, {"a": {"torch": 1.5, "x": 0.9}, "new": {"torch": 0.1}})
    assert history.slower([*before, *elsewhere, after], after) == [
        "a: torch / llama_fast fell from 2.20 (median of 3) to 1.50"
    ]
    # Two runs are too few to tell a slower run from a noisy one.
    assert history.slower([*before[1:], after], after) == []


def test_draws_every_processor_and_op(tmp_path: Path) -> None:
    one = run(1, {"a": {"torch": 2.0}})
    two = run(2, {"a": {"torch": 2.0, "unknown rival": 3.0}}, "cpu-b, 4 threads")
    two.ops["b"], two.ratios["b"] = "swiglu", {"torch": 0.5}
    history.draw([one, two], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: expected a run"),
        ('{"format": 2}', "another format than 1"),
        ('{"format": 1, "commit": "a"}', "line 1: expected a run"),
        ("[]", "line 1: expected a run"),
    ],
)
def test_a_damaged_history_is_an_error(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / history.RUNS
    path.write_text(line + "\n")
    assert history.main([str(MEASURED), "--history", str(tmp_path), "--commit", "a"]) == 2
    assert words in capsys.readouterr().err
    assert path.read_text() == line + "\n"


def test_a_date_without_time_zone_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(MEASURED), "--history", str(tmp_path), "--commit", "a", "--date", "2026-11-30"]
    assert history.main(arguments) == 2
    assert "--date: expected a time zone" in capsys.readouterr().err


def test_ratios_are_ratios_of_medians() -> None:
    results = results_.read(MEASURED)
    kept = history.run_of(results, "cpu-x", "abc", "2026-11-30T00:00:00+00:00")
    for result in results.results:
        for side in result.baselines:
            ratio = kept.ratios[result.case.name][side.implementation]
            assert math.isclose(ratio * kept.ours_ms[result.case.name], side.median_ms)
