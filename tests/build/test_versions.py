"""Every place that names the lowest torch or Python names the same."""

import re
from pathlib import Path

import pytest

import build_backend

ROOT = Path(__file__).resolve().parents[2]
TORCH = ".".join(map(str, build_backend.MINIMUM_TORCH))
PROJECT = (ROOT / "pyproject.toml").read_text()
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", PROJECT)


def test_metadata() -> None:
    assert f'"torch>={TORCH}",' in PROJECT
    assert f'requires-python = ">={PYTHONS[0]}"' in PROJECT
    assert f'python_version = "{PYTHONS[0]}"' in PROJECT  # mypy
    assert f'target-version = "py{PYTHONS[0].replace(".", "")}"' in PROJECT  # ruff
    # every release in between
    first, last = (int(p.split(".")[1]) for p in (PYTHONS[0], PYTHONS[-1]))
    assert [f"3.{minor}" for minor in range(first, last + 1)] == PYTHONS


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("README.md", 1),
        ("docs/quickstart.md", 2),
        ("docs/how/index.md", 1),
        ("benchmarks/run_gpu.sh", 1),
        ("csrc/ops.cpp", 1),
    ],
)
def test_texts(file: str, count: int) -> None:
    pattern = r"torch (\d\.\d+) (?:or newer|(?://\s*)?and(?:\s+//)? later)"
    named = re.findall(pattern, re.sub(r"\s+", " ", (ROOT / file).read_text()))
    assert named == [TORCH] * count
    pythons = re.findall(r"Python (3\.\d+) or newer", (ROOT / file).read_text())
    assert set(pythons) <= {PYTHONS[0]}
