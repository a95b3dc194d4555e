"""Names of tasks in tables of a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llama_fast.eval.report import read_run
from llama_fast.eval.report.final_table import task_table
from llama_fast.eval.report.names import Name
from tests.eval.report.runs import SUITE


def shown(thing: object, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(thing)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("agieval_sat_en", 14, ["agieval_sat_en"]),
        ("agieval_sat_en", 13, ["agieval_sat_", "en"]),
        ("agieval_sat_en", 8, ["agieval_", "sat_en"]),
        ("_a__b", 3, ["_", "a__", "b"]),
        ("disambiguation", 10, ["disambigua", "tion"]),
        ("", 10, [""]),
    ],
)
def test_a_name_breaks_after_its_underscores(name: str, width: int, lines: list[str]) -> None:
    assert shown(Name(name), width) == lines


@pytest.mark.parametrize("width", [60, 100])
def test_the_tasks_of_a_suite_in_a_narrow_terminal(width: int) -> None:
    results = read_run(SUITE).results
    lines = shown(task_table(results), width)
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    cells = [cell for cell in cells if not re.fullmatch(r"\d+ tasks", cell)]
    assert "".join(cells).startswith("".join(list(results["results"])[:20]))
    # Each line is made of whole words, unless a word is wider than the column.
    column = len(lines[2].split("┃")[1]) - 2
    names = [*results["results"], *results["groups"]]
    words = {word for name in names for word in name.split("_")}
    wide = [word for word in words if len(word) >= column]
    for cell in cells:
        if not any(cell.strip("_") in word for word in wide):
            assert set(cell.rstrip("_").split("_")) <= words
