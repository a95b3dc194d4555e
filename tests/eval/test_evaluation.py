"""`llama_fast.evaluate` with the names of benchmarks; `test_accuracy.py` has batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import llama_fast
from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.limits import Limits
from llama_fast.eval.run import evaluate_tasks, load
from llama_fast.models import LLaMA
from tests import paths
from tests.paths import data_file


def test_scores_are_those_of_a_run_of_the_command(tmp_path: Path) -> None:
    stories = str(data_file("checkpoints/stories260k") / "stories260K.bin")
    names = ["arc_easy", "piqa"]
    scores = llama_fast.evaluate(
        stories, names, limit=20, data_dir=paths.mirror(), device="cpu", out=tmp_path / "kept"
    )
    lm = HarnessModel(stories, device="cpu")
    loaded = load(names, paths.mirror())
    expected = evaluate_tasks(lm, loaded, tmp_path / "run", limits=Limits(20)).results["results"]
    assert scores.keys() == {"arc_easy", "piqa"}
    for name, score in scores.items():
        assert score.value == 100 * expected[name][score.key]
        assert str(score).endswith(" %")
    kept = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert kept["results"].keys() == {"arc_easy", "piqa"}


def test_a_model_in_memory_and_a_text_of_names(small_model: LLaMA) -> None:
    model, tokenizer = llama_fast.models.load(
        data_file("checkpoints/stories260k") / "stories260K.bin"
    )
    mirror = paths.mirror()
    scores = llama_fast.evaluate(
        model, "arc_easy, piqa", tokenizer=tokenizer, limit="3,piqa=2", data_dir=mirror
    )
    assert scores.keys() == {"arc_easy", "piqa"}
    assert model.training is False


def test_options_of_benchmarks_are_refused_with_batches(small_model: LLaMA) -> None:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"limit: expected none with batches of tokens, got 5"):
        llama_fast.evaluate(small_model, [(tokens, tokens)], limit=5)  # type: ignore[call-overload]


def test_a_benchmark_without_a_score_is_an_error() -> None:
    stories = str(data_file("checkpoints/stories260k") / "stories260K.bin")
    with pytest.raises(RuntimeError, match="gsm8k_cot: max_gen_toks: expected less than"):
        llama_fast.evaluate(
            stories, "gsm8k_cot", limit=1, data_dir=paths.mirror(), device="cpu", max_length=200
        )
    with pytest.raises(ValueError, match="arc_esy"):
        llama_fast.evaluate(stories, "arc_esy", data_dir=paths.mirror())
