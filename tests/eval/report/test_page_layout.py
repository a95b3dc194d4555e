"""The page's layout in a real browser, measured at the width of a desk and of a phone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llama_fast._format import duration
from llama_fast.eval.report import Run, read_run
from llama_fast.eval.report.html import write_page
from tests.eval.report.browser import Drive, find_browser
from tests.eval.report.runs import BFLOAT16, FLOAT32, SUITE, suite_with_zeros

DESK, PHONE = 1400, 375
PROGRAM = '''from typing import List


def separate_paren_groups(paren_string: str) -> List[str]:
    """ Separate groups of nested parentheses into separate strings. Ignore any spaces.
    >>> has_groups('( )')
    True
    """
'''
# Words that lie on more than one line: every word, and every part of a name such as exact_match.
WORDS = """
for (const item of all("details")) item.open = true;
await wait(() => all(".question[open] pre").length > 0);
said.broken = [];
const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const node = texts.currentNode;
  if (node.parentElement.closest("script, style, svg, option, .question, code")) continue;
  for (const word of node.data.matchAll(/[^\\s_,=\\/:.+@-]+/g)) {
    const range = page.createRange();
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    const lines = new Set([...range.getClientRects()].map((one) => Math.round(one.top)));
    if (lines.size > 1) said.broken.push(word[0]);
  }
}
said.size = [page.documentElement.clientWidth, page.documentElement.scrollWidth];
"""
ABOUT = """
said.labels = all("#facts dl.facts dt").map((one) => one.textContent);
said.values = all("#facts dl.facts dd").map((one) => one.textContent);
const folded = find("#facts details");
said.hidden = !folded.open && !folded.querySelector("dl").checkVisibility();
folded.open = true;
said.technical = all("dd", folded).map((one) => one.textContent);
// Characters on each line of each hash.
said.lines = all("code", folded).map((code) => {
  const count = {};
  for (const node of code.childNodes) {
    for (let at = 0; at < (node.data || "").length; at++) {
      const range = page.createRange();
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      const top = Math.round(range.getBoundingClientRect().top);
      count[top] = (count[top] || 0) + 1;
    }
  }
  return Object.values(count);
});
"""
PAPER = """
const table = () => [find("#columns").scrollWidth, find("#columns").clientWidth];
said.first = table();
for (const button of all("#rows button").slice(0, 3)) button.click();
said.five = [all("#columns thead th").length, ...table()];
const name = () => find("#columns tbody th").getBoundingClientRect().left;
const before = name();
find("#columns").scrollLeft = 1000;
said.moved = name() - before;
"""
CALIBRATION = """
said.card = find("#diagrams").getBoundingClientRect().width;
said.charts = all("#diagrams svg").map((one) => one.getBoundingClientRect().width);
const right = all("#diagrams svg, #diagrams table").map((one) => one.getBoundingClientRect().right);
said.reach = Math.max(...right) - find("#diagrams").getBoundingClientRect().left;
const counts = (body) => all("td:nth-of-type(1)", body).map((cell) => Number(cell.textContent));
said.bins = all("#diagrams tbody").map(counts);
"""
ROWS = """
const rows = all("#bars .row");
const visible = rows.filter((row) => row.checkVisibility());
said.heights = visible.map((row) => row.getBoundingClientRect().height);
const zeros = all("#bars details").filter((one) => one.textContent.includes("minerva_math_alg"));
said.zeros = zeros.map((one) =>
  [one.open, one.querySelector("summary").textContent, all(".row", one).length]);
const bold = all("#bars .row").filter((row) => /^bold/i.test(row.textContent));
said.bold = bold.map((row) => row.querySelector(".bar").style.width);
const notZeros = all("#bars .row").filter((row) => row.textContent.includes("agieval_sat_math"));
said.shown = notZeros.map((row) => row.checkVisibility());
"""
TITLES = """
said.titles = all("#list .question .text").map((one) => one.textContent);
const item = find("#list .question");
item.open = true;
await wait(() => item.querySelector("pre"));
said.question = all("pre", item).find((one) => !one.closest("details:not(.question)")).textContent;
"""


def program_run(folder: Path) -> Run:
    """A run of a task like HumanEval, with one question."""
    folder.mkdir()
    sample = {
        "doc_id": 0,
        "target": "check(separate_paren_groups)",
        "arguments": {"gen_args_0": {"arg_0": PROGRAM, "arg_1": {"until": ["\\n"]}}},
        "resps": [["    return []"]],
        "filtered_resps": ["    return []"],
        "filter": "create_test",
        "metrics": ["pass@1"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "pass@1": 0.0,
    }
    (folder / "samples_humaneval.jsonl").write_text(json.dumps(sample) + "\n")
    results = {"results": {"humaneval": {"pass@1,create_test": 0.0}}}
    (folder / "results.json").write_text(json.dumps(results))
    return read_run(folder)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    """What the scripts measured; one start of the browser for all."""
    folder = tmp_path_factory.mktemp("pages")
    a, b = read_run(FLOAT32), read_run(BFLOAT16)
    text = {
        "one": write_page(folder / "one.html", a).read_text(),
        "two": write_page(folder / "two.html", a, b).read_text(),
        "suite": write_page(folder / "suite.html", suite_with_zeros(folder / "zeros")).read_text(),
        "program": write_page(folder / "program.html", program_run(folder / "run")).read_text(),
    }
    drives = {}
    for width in (DESK, PHONE):
        for page in ("one", "two", "suite"):
            drives[f"words {page} {width}"] = Drive(text[page], WORDS, width)
            drives[f"paper {page} {width}"] = Drive(text[page], PAPER, width)
        drives[f"about {width}"] = Drive(text["suite"], ABOUT, width)
        drives[f"rows {width}"] = Drive(text["suite"], ROWS, width)
        for page in ("one", "two"):
            drives[f"calibration {page} {width}"] = Drive(text[page], CALIBRATION, width)
    drives["titles"] = Drive(text["one"], TITLES)
    drives["program"] = Drive(text["program"], TITLES)
    found, console = find_browser(folder).drive(list(drives.values()))
    assert console == [] and {one["trouble"] for one in found} == {""}
    return dict(zip(drives, found, strict=True))


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("page", ["one", "two", "suite"])
def test_no_word_is_broken(said: Mapping[str, Any], page: str, width: int) -> None:
    found = said[f"words {page} {width}"]
    assert found["broken"] == [] and found["size"] == [width, width]


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_what_a_reader_asks_first_comes_first_and_hashes_are_folded(
    said: Mapping[str, Any], width: int
) -> None:
    found = said[f"about {width}"]
    first = ["Model", "dtype", "Quantization", "Device", "Machine", "Date", "Questions", "Time"]
    assert found["labels"][:8] == first
    run = read_run(SUITE)
    metadata = run.metadata
    asked = sum(run.results["n-samples"][task]["effective"] for task in run.tasks)
    questions = f"{asked:,} in {len(run.tasks)} tasks"
    assert found["values"][6:8] == [questions, duration(metadata["seconds"])]
    assert found["hidden"]
    hashes = [metadata["model_sha256"], metadata["tokenizer_sha256"]]
    assert [text for text in found["technical"] if text in hashes] == hashes
    # Lines of whole groups of 16 characters, all as long as the first.
    for lines in found["lines"]:
        assert sum(lines) == 64 and set(lines) == {lines[0]} and lines[0] % 16 == 0


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("page", ["one", "two", "suite"])
def test_the_paper_s_table_is_not_cut(said: Mapping[str, Any], page: str, width: int) -> None:
    found = said[f"paper {page} {width}"]
    needed, visible = found["first"]
    assert needed <= visible
    columns, needed, visible = found["five"]
    assert columns == (7 if page != "two" else 8)
    # On a phone five models of the paper scroll, beside a column of names that stays.
    assert found["moved"] == 0 and (needed <= visible) == (width == DESK)


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("page", ["one", "two"])
def test_calibration_fills_its_card(said: Mapping[str, Any], page: str, width: int) -> None:
    found = said[f"calibration {page} {width}"]
    assert found["reach"] == pytest.approx(found["card"], rel=0.03)
    share = 0.45 if width == DESK else 0.97
    assert all(chart >= share * found["card"] for chart in found["charts"])
    for bins in found["bins"]:
        assert sum(bins) == 20  # of ARC and WinoGrande: the others' options are texts


def test_rows_are_compact_and_a_group_of_zeros_is_one_line(said: Mapping[str, Any]) -> None:
    desk, phone = said[f"rows {DESK}"], said[f"rows {PHONE}"]
    for found in (desk, phone):
        assert found["zeros"] == [[False, "7 tasks, all 0.0", 7]]
        assert found["shown"] == [True]
        # A score that is no share: the column's bar has the scale of its task's.
        assert len(found["bold"]) == 2 and len(set(found["bold"])) == 1
    # One line of text, and the padding above that of a head.
    assert max(desk["heights"]) < 40 and sorted(desk["heights"])[len(desk["heights"]) // 2] < 30


def test_questions_are_titled_by_their_own_text(said: Mapping[str, Any]) -> None:
    assert said["titles"]["titles"][0].startswith("Which statement best explains why")
    assert said["program"]["titles"] == [
        "separate_paren_groups: Separate groups of nested parentheses into separate strings."
    ]
    assert said["program"]["question"].startswith("def separate_paren_groups(")
