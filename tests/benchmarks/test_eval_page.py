"""The published page of the suite is what the current code makes of its results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.eval_page import (
    DOCUMENT,
    RESULTS,
    read_page,
    redraw,
    with_table,
    without_paths,
)
from tests.eval.report.runs import FLOAT32


def test_the_published_page_is_not_stale(tmp_path: Path) -> None:
    page = RESULTS.with_suffix(".html")
    again = tmp_path / "again.html"
    again.write_text(redraw(RESULTS))
    # Compressed blocks depend on the version of zlib: what is in them counts.
    parts = [
        re.sub(r'(id="block-\d+">)[^<]*', r"\1", path.read_text(encoding="utf-8"))
        for path in (page, again)
    ]
    assert parts[0] == parts[1], "run `make eval-page`"
    assert read_page(page) == read_page(again)
    assert len(read_page(page).questions) == 117


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text((FLOAT32 / "results.json").read_text())
    (tmp_path / "results.html").write_text("<p>a page</p>")
    with pytest.raises(ValueError, match=r"results\.html: expected the page of an evaluation"):
        redraw(tmp_path / "results.json")


def test_the_document_has_the_scores_of_the_results() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text, RESULTS) == text
    with pytest.raises(ValueError, match="expected one table of scores"):
        with_table("no table", RESULTS)


def test_the_published_results_name_no_folder_of_a_machine() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert without_paths(text) == text
    assert not re.search(r'"/(home|root|tmp|usr|work|Users)/', text)
    found = '{"config_source": "/home/me/env/lm_eval/tasks/piqa/piqa.yaml"}'
    assert without_paths(found) == '{"config_source": "lm_eval/tasks/piqa/piqa.yaml"}'
