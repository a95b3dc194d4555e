"""A whole evaluation, without the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.report import read_run
from llama_fast.eval.report.suites import metric_keys
from llama_fast.eval.run import Limits, evaluate_tasks, load
from tests.paths import shared_data


def test_a_task_without_a_score_is_named_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ToxiGen's texts have no score without its classifier; GSM8K's are longer than the model."""
    monkeypatch.setattr("llama_fast.eval.suite.toxigen.CLASSIFIER", str(tmp_path / "none"))
    stories = shared_data("checkpoints/stories260k") / "stories260K.bin"
    lm = HarnessModel(str(stories), device="cpu", max_length=200)
    names = ["toxigen_generation", "gsm8k_cot", "arc_easy"]
    loaded = load(names, shared_data("hub").parent)
    outcome = evaluate_tasks(
        lm, loaded, tmp_path, limits=Limits(2), keys=metric_keys("llama2-paper")
    )
    assert outcome.failed == ["gsm8k_cot"]
    assert outcome.not_scored.keys() == {"toxigen_generation", "gsm8k_cot"}
    assert "not scored" in outcome.not_scored["toxigen_generation"]
    assert outcome.not_scored["gsm8k_cot"].startswith("max_gen_toks: expected less than the model")
    run = read_run(tmp_path)
    assert run.metadata["not_scored"] == outcome.not_scored and run.metadata["notes"] is None
    assert len(list(run.samples("toxigen_generation"))) == 2  # kept all the same
    assert run.results["results"]["arc_easy"]["acc_norm,none"] in (0, 0.5, 1)
    said = capsys.readouterr()
    assert "toxigen_generation: no score" in said.out and said.err == ""
