"""What stands on the terminal while an evaluation runs, and at its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llama_fast._format import fixed
from llama_fast.eval.intervals import interval_of_share
from llama_fast.eval.report import read_run, table
from llama_fast.eval.report.final_table import suite_table, task_table
from llama_fast.eval.report.groups import groups_of
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.report.table import LiveTable
from llama_fast.eval.scenarios import SCENARIOS
from llama_fast.eval.suite import Part, suite, summarise
from tests.eval.report.runs import FLOAT32, SUITE

ROW = {"acc,none": 0.25, "acc_stderr,none": 0.05, "alias": "piqa", "sample_len": 40}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; a test sets what time it is."""
    now = [100.0]
    monkeypatch.setattr(table.time, "perf_counter", lambda: now[0])
    return now


def console(width: int = 110, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(live: LiveTable, width: int = 110) -> list[str]:
    plain = console(width)
    plain.print(live)
    return said(plain).splitlines()


def test_progress_speed_and_time_left(clock: list[float]) -> None:
    live = LiveTable({"piqa": 400, "boolq": 100}, console())
    live.start_task("piqa", 400)
    clock[0] += 10
    live.advance("piqa", 80)
    line = next(line for line in shown(live) if line.strip().startswith("piqa"))
    assert "80/400" in line and " 8.0 " in line and "40 s" in line  # 320 left at 8 a second
    total = shown(live)[-1]
    # The task to come is in the total: 420 of 500 left at 8 a second.
    assert "80/500" in total and "52 s" in total
    assert any("1 to come" in line for line in shown(live))
    clock[0] += 40
    live.advance("piqa", 320)
    live.finish("piqa", ROW)
    live.fail("boolq", "no [data] here")
    text = "\n".join(shown(live))
    assert "acc 25.0 ± 5.0 %" in text and "(50 s)" in text
    assert "not scored: no [data]" in text and "400/400" in shown(live)[-1]


def test_lines_where_there_is_no_terminal(clock: list[float]) -> None:
    plain = console()
    with LiveTable(None, plain) as live:
        live.start_task("piqa", 400)
        for seconds, n in ((10, 80), (25, 200), (1, 4), (14, 116)):
            clock[0] += seconds
            live.advance("piqa", n)
        live.finish("piqa", ROW)
        live.fail("boolq", "no [data] here")
    assert said(plain).splitlines() == [
        "piqa: 400 questions ...",
        # One in 30 seconds; 280 of 400 in 35 seconds.
        "piqa: 280/400, 8.0 questions/s, 15 s left",
        "piqa: acc 25.0 ± 5.0 % (8.0 questions/s, 50 s)",
        "boolq: not scored: no [data] here",
    ]


def test_a_terminal_gets_one_table_that_changes() -> None:
    terminal = console(terminal=True)
    with LiveTable({"piqa": 40}, terminal) as live:
        live.start_task("piqa", 40)
        live.advance("piqa", 40)
        live.finish("piqa", ROW)
    assert "\x1b[" in said(terminal) and "questions ..." not in said(terminal)
    assert "25.0 ± 5.0 %" in said(terminal)


@pytest.mark.parametrize("width", [60, 80, 110])
def test_many_tasks_fit(width: int) -> None:
    names = [f"mmlu_5shot_high_school_subject_{n}" for n in range(57)]
    live = LiveTable(dict.fromkeys(names, 100), console())
    for name in names[:30]:
        live.start_task(name, 100)
        live.advance(name, 50)
        live.finish(name, ROW)
    lines = shown(live, width)
    assert len(lines) < 20 and max(map(len, lines)) <= width
    assert all("acc 25.0 ± 5.0 %" in line for line in lines[2:14]), lines
    assert "subject_29" in lines[13] and "100/100" in lines[13]
    assert any("18 finished" in line for line in lines)
    assert any("27 to come" in line for line in lines)


@pytest.mark.parametrize(
    ("row", "key", "text"),
    [
        ({"acc,none": 0.5, "acc_norm,none": 0.25, "acc_norm_stderr,none": "N/A"}, None, "25.0 %"),
        ({"acc,none": 0.5, "acc_norm,none": 0.25}, "acc,none", "50.0 %"),
        ({"acc,none": 0.5, "acc_norm,none": 0.25}, "acc", "50.0 %"),
        # SQuAD's script counts to 100 by itself, below 1 too.
        ({"exact,none": 0.8, "f1,none": 12.5}, "exact,none", "0.8 %"),
        ({"exact,none": 0.8, "f1,none": 0.9}, "f1,none", "0.9 %"),
        ({"bleu,none": 31.25}, None, "31.2"),
        ({"bits_per_byte,none": 0.953}, None, "0.953"),
        ({"acc,none": 0.5, "acc_stderr,none": float("nan")}, None, "50.0 %"),
        # No standard error where all answers are equal, but an interval.
        (
            {"acc,none": 0.0, "acc_stderr,none": 0.0, "sample_len": 4},
            None,
            "0.0 % (0.0 to 49.0)",
        ),
        (
            {"acc,none": 1.0, "acc_stderr,none": "N/A", "sample_len": 1},
            None,
            "100.0 % (20.7 to 100.0)",
        ),
        ({"pass@1,create_test": 0.05, "pass@1_stderr,create_test": 0.01}, None, "5.0 ± 1.0 %"),
    ],
)
def test_a_score_is_chosen_and_written(row: dict[str, object], key: str | None, text: str) -> None:
    assert str(score_of(row, key)) == text


def test_a_row_without_a_score() -> None:
    assert score_of({"alias": "group", "sample_len": 4, "acc,none": "N/A"}) is None
    assert score_of({"acc,none": 1.0}, "f1") is None
    assert score_of({"unscored,none": 1.0, "unscored_stderr,none": 0.0}, "toxic,none") is None
    assert score_of({"unscored,none": 1.0, "unscored_stderr,none": 0.0}) is None


def test_the_usual_score_of_a_scenario_is_its_main_metric() -> None:
    for scenario in SCENARIOS.values():
        score = score_of({f"{metric},none": 0.5 for metric in scenario.metrics})
        assert score is not None and score.metric == scenario.main_metric


def test_the_tables_at_the_end() -> None:
    run = read_run(FLOAT32)
    plain = console(120)
    plain.print(suite_table(summarise(run.results)))
    lines = said(plain).splitlines()
    row = next(line for line in lines if "Commonsense" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[1] == "42.3*" and cells[3] == "40"
    low, high = map(float, cells[2].split(" to "))
    assert 20 < low < 42.3 < high < 65
    # Of the four benchmarks that were asked: the means of chance and of the human levels.
    assert cells[4:6] == ["37.5", fixed((94.9 + 95.6 + 94.0 + 100) / 4 - 42.3, 1)]
    assert cells[6:] == ["57.4", "56.1", "60.8", "63.9"]
    assert any(line.startswith("chance: score of guessing") for line in lines)
    assert any("PIQA" in line and "66.7" in line for line in lines)
    assert any(line.startswith("* Commonsense Reasoning: without SIQA") for line in lines)
    code = [cell.strip() for cell in next(line for line in lines if "Code" in line).split("│")]
    assert code[2:7] == ["–", "", "", "", ""]
    with pytest.raises(ValueError, match=r"rows: expected some of MPT 7B.* got GPT"):
        suite_table([], rows=["GPT"])
    plain = console()
    plain.print(task_table(run.results, {"hellaswag": "acc,none"}))
    row = next(line for line in said(plain).splitlines() if "hellaswag" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    accuracy = 100 * run.results["results"]["hellaswag"]["acc,none"]
    assert accuracy != 100 * run.results["results"]["hellaswag"]["acc_norm,none"]
    assert cells[1] == "acc" and cells[4] == "8"
    assert cells[2] == f"{fixed(accuracy, 1)} %"
    assert cells[5:] == ["25.0", fixed(95.6 - accuracy, 1)]
    interval = score_of(run.results["results"]["hellaswag"], "acc,none")
    assert interval is not None and cells[3] == interval.interval_text != ""
    plain = console()
    group = Part("Physics", "physics", ("piqa", "winogrande", "no_such"), "acc,none", 0)
    plain.print(task_table(run.results, parts=[group]))
    assert "piqa" not in said(plain) and "hellaswag" in said(plain)
    assert "and 2 of Physics: see the report" in said(plain)


def test_groups_stand_at_the_end_of_the_tasks() -> None:
    results = read_run(SUITE).results
    plain = console(80)
    plain.print(task_table(results))
    assert max(map(len, said(plain).splitlines())) <= 80
    plain = console(100)
    plain.print(task_table(results))
    lines = said(plain).splitlines()
    line = next(at for at, line in enumerate(lines) if line.startswith("├"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[line + 1 : -1]]
    accuracy = 100 * results["groups"]["mmlu_5shot"]["acc,none"]
    error = results["groups"]["mmlu_5shot"]["acc_stderr,none"]
    asked = results["groups"]["mmlu_5shot"]["sample_len"]
    bounds = interval_of_share(accuracy / 100, error, asked)
    assert bounds is not None
    interval = " to ".join(fixed(100 * bound, 1) for bound in bounds)
    levels = ["25.0", fixed(89.8 - accuracy, 1)]
    score = f"{fixed(accuracy, 1)} %"
    assert rows[2] == ["mmlu_5shot", "acc", score, interval, f"{asked:,}", *levels]
    assert rows[3] == ["57 tasks", *[""] * 6]
    names = ["minerva_math", "mmlu_5shot", "bbh_3shot", "agieval_nous"]
    assert [row[0] for row in rows[::2]] == names
    # Those that stand in the suite's table do not stand here as well.
    plain = console(80)
    plain.print(task_table(results, parts=suite("llama2-paper").parts))
    assert "57 of MMLU" in said(plain) and "57 tasks" not in said(plain)


def test_groups_within_groups() -> None:
    """The harness's own runs list groups among the tasks too."""
    results = dict(read_run(FLOAT32).results)
    row = {"acc,none": 0.5, "acc_norm,none": 0.25, "sample_len": 20}
    results["groups"] = {"physical": row, "easy": row, "elsewhere": row}
    results["group_subtasks"] = {
        "physical": ["piqa"],
        "easy": ["arc_easy", "physical"],
        "elsewhere": ["no_such_task"],
    }
    results["results"] = {**results["results"], "easy": row}
    found = groups_of(results, {"arc_easy": "acc,none"})
    assert [group.name for group in found] == ["easy", "physical"]
    assert found[0].tasks == ("arc_easy", "piqa") and found[0].questions == 20
    assert [group.score.metric for group in found] == ["acc", "acc_norm"]
    plain = console()
    plain.print(task_table(results))
    assert said(plain).count("│ easy ") == 1


@pytest.mark.parametrize(
    ("width", "models", "levels"), [(60, 0, False), (80, 0, True), (100, 2, True), (120, 4, True)]
)
def test_a_narrow_terminal_shows_fewer_columns(width: int, models: int, levels: bool) -> None:
    """Rows of the paper are left out first, from the left; then chance and headroom."""
    results = read_run(SUITE).results
    plain = console(width)
    plain.print(suite_table(summarise(results)))
    lines = said(plain).splitlines()
    assert max(map(len, lines)) <= width
    head = " ".join(lines[2:4] if models else lines[2:3])
    assert [name in head for name in ("MPT", "Falcon")] == [models == 4] * 2
    assert head.count("Llama") == min(models, 2)
    assert ("chance" in head) is levels and ("room" in head) is levels
    if levels:
        assert "…" not in said(plain)
        mmlu = next(line for line in lines if line.startswith("│ MMLU"))
        assert mmlu.split("│")[5].strip() == "25.0"
