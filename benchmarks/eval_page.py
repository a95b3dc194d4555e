"""Draws the published page of an evaluation again, from its results and its own questions.

    python -m benchmarks.eval_page [RESULTS] [--picture docs/images/eval-report.png]

The samples of a whole suite are too large for a repository. The page beside RESULTS (the same name,
`.html`) holds the questions that it shows and the calibration over all of them; these are kept, and
everything else is made from RESULTS. The picture is the page's top in Chromium.
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

from llama_fast._write import write_whole
from llama_fast.eval.report import read_run
from llama_fast.eval.report.html import MAX_QUESTIONS, render
from llama_fast.eval.report.page_data import PageData, collect
from llama_fast.eval.report.titles import heading, titles

RESULTS = Path(__file__).with_name("results") / "smollm2-135m-llama2-suite.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Width and height of the picture, in pixels.
SIZE = 1180, 1230


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
    args = parser.parse_args()
    page = args.results.with_suffix(".html")
    write_whole(page, redraw(args.results))
    if args.picture is not None:
        photograph(page, args.picture)


if __name__ == "__main__":
    main()
