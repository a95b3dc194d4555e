"""Draws the pictures of the documentation and the benchmarks again (`make pictures`).

    python docs/tools/pictures.py [results] [demo] [training]        default: all

results: figures of the benchmark suite and of `make train-proof`, from benchmarks/results; seconds.
demo: `llama-fast demo`, whose figures the quick start shows; six minutes, downloads a model.
training: two short runs on tests/data, whose curves docs/training.md shows; two minutes.

`make eval-page` draws the page of an evaluation, which needs Chromium, and `docs/tools/speed.py`
the drawing on the first page. `tests/benchmarks/test_pictures.py` says which picture is stale.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import plots, train_proof_plot
from benchmarks.results import read

ROOT = Path(__file__).resolve().parents[2]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
TEXT = ROOT / "tests" / "data" / "files" / "corpora" / "tinyshakespeare.txt"


def results() -> None:
    """Draw what benchmarks/results has numbers for."""
    for path in sorted(RESULTS.glob("*.json")):
        if plots.drawn_from(path):
            plots.draw_all(read(path), path.with_suffix(""))
    proof = json.loads((RESULTS / "train-proof.json").read_text())
    train_proof_plot.draw(proof["corpora"], IMAGES / "train-proof.png")


def demo(folder: Path) -> None:
    """Run the demo and take its pictures."""
    _command("demo", "--out", str(folder / "demo"))
    for name in ("kernels", "loss"):
        (picture,) = (folder / "demo").rglob(f"{name}.png")
        shutil.copyfile(picture, IMAGES / f"demo-{name}.png")


def training(folder: Path) -> None:
    """Train two small models that differ in their learning rate, and draw their curves."""
    shards = folder / "shards"
    learned = ("--separator", "\n\n", "--train-bpe", "512")
    _command("tokenize", str(TEXT), *learned, "--out", str(shards))
    runs = []
    for lr in ("1.0e-3", "3.0e-3"):
        runs.append(folder / f"lr={lr}")
        _command(
            "train", "configs/debug.yaml", "--data.train", str(shards), "--data.valid", str(shards),
            "--steps", "400", "--optimizer.lr", lr, "--out", str(runs[-1]),
        )  # fmt: skip
    _command("plot", *map(str, runs), "--out", str(IMAGES / "training-curves.png"))


def _command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "llama_fast", *arguments], cwd=ROOT, check=True)


def main(parts: list[str]) -> None:
    """Draw the named parts, or all."""
    known = ("results", "demo", "training")
    if wrong := [part for part in parts if part not in known]:
        raise SystemExit(f"expected some of {', '.join(known)}, got {wrong[0]}")
    with tempfile.TemporaryDirectory() as folder:
        for part in parts or known:
            if part == "results":
                results()
            else:
                {"demo": demo, "training": training}[part](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
