"""The energy of an evaluation, with a counter that the test advances."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.report import read_run
from llama_fast.eval.report.facts import facts_of
from llama_fast.eval.run import Limits, Outcome, evaluate_tasks, load
from tests import paths
from tests.paths import data_file
from tests.powercap import count, domain


def evaluate(out: Path) -> tuple[HarnessModel, Outcome]:
    stories = data_file("checkpoints/stories260k") / "stories260K.bin"
    lm = HarnessModel(str(stories), device="cpu", cache=out / "requests.sqlite")
    loaded = load(["arc_easy", "openbookqa_ratio"], paths.mirror())
    return lm, evaluate_tasks(lm, loaded, out, limits=Limits(2))


def test_energy_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 J a task; answers that are read from the cache take none."""
    counter = domain(tmp_path / "powercap", "0", "package-0", 0)
    monkeypatch.setattr("llama_fast._energy.POWERCAP", tmp_path / "powercap")
    original = HarnessModel.loglikelihood

    def loglikelihood(self: HarnessModel, *arguments, **options):  # type: ignore[no-untyped-def]
        count(counter, 4_000_000)
        return original(self, *arguments, **options)

    monkeypatch.setattr(HarnessModel, "loglikelihood", loglikelihood)
    lm, outcome = evaluate(tmp_path / "run")
    assert outcome.energy is not None
    assert outcome.energy.rates("arc_easy")["joules_per_question"] == pytest.approx(2.0)
    recorded = read_run(tmp_path / "run").metadata["energy"]
    assert recorded["joules"] == pytest.approx(8.0)
    assert recorded["joules_per_1000_tokens"] == pytest.approx(8000 / lm.computed)
    shown = dict(facts_of(read_run(tmp_path / "run"))[0])["Energy"]
    assert shown.endswith("J per 1,000 tokens, 2 J per question (RAPL, package-0)")
    assert str(outcome.energy) == shown

    lm, outcome = evaluate(tmp_path / "run")  # all answers come from the cache
    assert lm.computed == 0
    assert str(outcome.energy) == "none, all answers came from the cache"
    assert outcome.energy.rates("arc_easy")["joules_per_question"] is None
    assert read_run(tmp_path / "run").metadata["energy"] == recorded


def test_energy_without_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_fast._energy.POWERCAP", tmp_path / "none")
    _, outcome = evaluate(tmp_path / "run")
    assert str(outcome.energy) == "not measurable"
    assert read_run(tmp_path / "run").metadata["energy"] == "not measurable"
