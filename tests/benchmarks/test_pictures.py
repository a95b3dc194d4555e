"""Pictures in the repository show the results in the repository, and can be seen on a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from PIL import Image

from benchmarks import plots, train_proof_plot
from benchmarks.results import read
from llama_fast._plot_style import LLAMA_FAST, SERIES, TORCH
from llama_fast.demo.kernels import CASES, backends_of
from tests.paths import REPOSITORY

RESULTS, IMAGES = REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "images"
SUITES = [p for p in sorted(RESULTS.glob("*.json")) if plots.drawn_from(p)]


def shown(picture: Path) -> str:
    with Image.open(picture) as image:
        return str(image.info["Description"])


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_figures_of_the_suite_are_those_of_its_results(path: Path, tmp_path: Path) -> None:
    source = plots.source(read(path))
    committed = plots.drawn_from(path)
    again = plots.draw_all(read(path), tmp_path / path.stem)
    assert {p.name for p in committed} == {p.name for p in again}
    assert {p.name: shown(p) for p in committed} == {p.name: source for p in again}


def test_a_colour_means_one_thing() -> None:
    assert len(set(plots.COLOUR.values())) == len(plots.COLOUR)
    assert not {LLAMA_FAST, TORCH} & set(SERIES)


def test_some_suite_has_figures() -> None:
    assert SUITES


def test_train_proof_shows_its_curves() -> None:
    proof = json.loads((RESULTS / "train-proof.json").read_text())
    assert shown(IMAGES / "train-proof.png") == train_proof_plot.source(proof["corpora"])


def test_the_demos_picture_shows_the_backends_that_a_cpu_has_now() -> None:
    """One that was drawn before an op had a kernel names the reference."""
    rows = json.loads(shown(IMAGES / "demo-kernels.png"))
    assert rows == [[case.op, case.what, backends_of(case.op)[0]] for case in CASES]


PICTURES = sorted([*RESULTS.glob("*.png"), *IMAGES.glob("*.png")])


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_fits_a_screen(picture: Path) -> None:
    with Image.open(picture) as image:
        width, height = image.size
    assert width <= 2800 and height <= 1.1 * width  # twice the pixels of a page of 1,400
