"""Draws the published page of an evaluation again, from its results and its own questions.

    python -m benchmarks.eval_page [RESULTS] [--run DIR] [--picture docs/images/eval-report.png]

The samples of a whole suite are too large for a repository. The page beside RESULTS (the same name,
`.html`) holds the questions that it shows and the calibration over all of them; these are kept, and
everything else is made from RESULTS. With --run, results and page of a new run in DIR take their
place first. The table of scores in docs/evaluation.md is written, too. The picture is the page's
top in Chromium.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from llama_fast._format import fixed
from llama_fast._write import write_whole
from llama_fast.eval.report import read_run
from llama_fast.eval.report.facts import num_questions
from llama_fast.eval.report.html import MAX_QUESTIONS, render, write_page
from llama_fast.eval.report.page_data import PageData, collect
from llama_fast.eval.report.suites import columns_of
from llama_fast.eval.report.titles import heading, titles
from llama_fast.eval.suite import paper_table

RESULTS = Path(__file__).with_name("results") / "smollm2-135m-llama2-suite.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "evaluation.md"
PAPER_ROWS = ("Llama 1 7B", "Llama 2 7B")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Width and height of the picture, in pixels.
SIZE = 1180, 1230
SHOWN = 25  # questions of a task in the published page, which is 0.5 MB with them


def redraw(results: Path) -> str:
    """The page of the results, as HTML.

    Args:
        results: the results of a run; the page is beside it.

    Raises:
        FileNotFoundError: there are no results or there is no page.
        ValueError: the page holds no data.
    """
    run = read_run(results)
    kept = read_page(results.with_suffix(".html"))
    summary = collect(run, None, (run.name,), None, MAX_QUESTIONS, None).summary
    for key in ("questions", "calibration", "limits"):
        summary[key] = kept.summary[key]
    summary["uncalibrated"] = kept.summary.get("uncalibrated", [])
    for questions in kept.questions:
        headings = [heading(question["prompt"]) for question in questions]
        rows = zip(questions, headings, titles(headings), strict=True)
        for question, place, title in rows:
            question.update(title=title, start=place.start)
    return render(run.name, PageData(summary, kept.questions))


def read_page(path: Path) -> PageData:
    """The data in a page.

    Raises:
        FileNotFoundError: there is no page.
        ValueError: the page holds no data.
    """
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    if data is None:
        raise ValueError(f"{path}: expected the page of an evaluation, found no data in it")
    blocks = re.findall(r'<script type="text/plain" id="block-\d+">(.*?)</script>', text, re.DOTALL)
    questions: list[list[dict[str, Any]]] = [
        json.loads(gzip.decompress(base64.b64decode(block))) for block in blocks
    ]
    return PageData(json.loads(data[1]), questions)


def score_table(results: Path) -> str:
    """The scores of a run beside two rows of the paper, as a table in Markdown."""
    run = read_run(results)
    paper = {row.name: row.scores for row in paper_table().rows}
    lines = [
        f"| | SmolLM2-135M-Instruct (95 % interval) | questions | {' | '.join(PAPER_ROWS)} |",
        "|---|---|---|" + "---|" * len(PAPER_ROWS),
    ]
    for score in columns_of(run):
        if score.value is None or score.column not in paper_table().columns:
            continue
        parts = [part.name for part in score.parts]
        names = f"{len(parts)} benchmarks" if len(parts) > 3 else ", ".join(parts)
        name = score.column if len(parts) == 1 else f"{score.column}: {names}"
        bounds = [fixed(bound, 1) for bound in score.interval or ()]
        interval = f" ({' to '.join(bounds)})" if bounds else ""
        cells = [name, fixed(score.value, 1) + interval, f"{score.questions:,}"]
        for row in PAPER_ROWS:
            alone = " (GSM8K alone)" if (score.column, row) == ("Math", "Llama 2 7B") else ""
            cells.append(fixed(paper[row][score.column], 1) + alone)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text: str, results: Path) -> str:
    """The text of docs/evaluation.md with the results' table and number of questions.

    Raises:
        ValueError: the text has no such table.
    """
    run = read_run(results)
    asked = sum(num_questions(run, task) or 0 for task in run.tasks)
    facts = f"answered {asked:,} questions"
    text, facts_found = re.subn(r"answered [\d,]+ questions", facts, text)
    table = re.compile(r"^\| \| SmolLM2-135M-Instruct .*\n(?:\|.*\n)*", re.MULTILINE)
    text, tables_found = table.subn(lambda _: score_table(results) + "\n", text)
    if (facts_found, tables_found) != (1, 1):
        raise ValueError(f"{DOCUMENT}: expected one table of scores and a line with their number")
    return text


def without_paths(text: str) -> str:
    """Results without the folder in which lm-eval is installed, which is this machine's."""
    return re.sub(r'(?<=")[^"]*/(?=lm_eval/tasks/)', "", text)


def photograph(page: Path, picture: Path) -> None:
    """Write the top of a page as PNG.

    Raises:
        FileNotFoundError: there is no Chromium.
        subprocess.CalledProcessError: Chromium failed.
    """
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise FileNotFoundError(f"--picture: expected one of {', '.join(BROWSERS)}, found none")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}",
            "--virtual-time-budget=20000", f"--screenshot={picture.resolve()}",
            page.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Write the page, and the picture if one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eval_page", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, metavar="RESULTS")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also write a PNG of its top")
    parser.add_argument("--run", type=Path, metavar="DIR", help="publish the run in this folder")
    args = parser.parse_args()
    if args.run is not None:
        text = (args.run / "results.json").read_text(encoding="utf-8")
        write_whole(args.results, without_paths(text))
        write_page(args.results.with_suffix(".html"), read_run(args.run), max_questions=SHOWN)
    page = args.results.with_suffix(".html")
    write_whole(page, redraw(args.results))
    if args.results == RESULTS:
        write_whole(DOCUMENT, with_table(DOCUMENT.read_text(encoding="utf-8"), args.results))
    if args.picture is not None:
        photograph(page, args.picture)


if __name__ == "__main__":
    main()
