"""Both engines that `make bench-eval` compares answer the same questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

import llama_fast
from llama_fast.cli.bench import suite
from llama_fast.eval.harness import HarnessModel
from tests.paths import mirror, smollm2

evaluation = suite("evaluation")
CASES = [
    evaluation.Case("likelihoods", "arc_easy", 3, 2.5, rounds=2),
    evaluation.Case("texts", "gsm8k_cot", 2, 4.0, tokens=3, rounds=1),
]


@pytest.mark.slow
def test_the_sides_answer_in_turns(tmp_path: Path) -> None:
    data = mirror()
    model, tokenizer = llama_fast.models.load(smollm2(), dtype=torch.float32)
    # Three layers of thirty: the same code, and the same tokens, in a tenth of the time.
    model.layers = model.layers[:3]
    model.config = dataclasses.replace(model.config, num_layers=3)
    folder = str(tmp_path / "smollm2")
    llama_fast.models.save(model, folder, tokenizer)
    theirs = HFLM(pretrained=folder, dtype="float32", batch_size=8, device="cpu")
    ours = HarnessModel(folder, dtype="float32", device="cpu")
    results = []
    for case in CASES:
        truths: dict[str, list[object]] = {}
        found = evaluation.run_case(case, theirs, ours, data, "float32", truths)
        results.append(found)
        assert len(found.theirs) == len(found.ours) == case.rounds and found.ratio > 0
        assert found.questions == found.same == case.questions
        assert found.as_float32 == (case.questions, case.questions)
        # As if every answer in float32 had been another one.
        truths[case.name] = [None] * case.questions
        again = evaluation.run_case(case, theirs, ours, data, "bfloat16", truths)
        assert again.as_float32 == (0, 0) and again.same == case.questions
    evaluation.write(tmp_path / "eval.json", results)
    text = (tmp_path / "eval.md").read_text()
    assert "| likelihoods, 3 questions | float32 |" in text and "| 2 of 2 | 2, 2 |" in text
