"""The facts of the benchmarks are whole and agree with the paper's other table."""

from __future__ import annotations

import pytest

from llama_fast.eval.choose.cards import cards, paper_scores
from llama_fast.eval.suite import paper_table, suite

GROUPS = {
    "Code": ("HumanEval", "MBPP"),
    "Commonsense Reasoning": (
        "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC-Easy", "ARC-Challenge", "OpenBookQA",
        "CommonsenseQA",
    ),
    "World Knowledge": ("NaturalQuestions", "TriviaQA"),
    "Reading Comprehension": ("SQuAD", "QuAC", "BoolQ"),
    "Math": ("GSM8K", "MATH"),
    "MMLU": ("MMLU",),
    "BBH": ("BBH",),
    "AGI Eval": ("AGIEval",),
}  # fmt: skip


def test_scores_of_the_benchmarks_give_the_papers_groups() -> None:
    """Tables 20 to 25 against Table 3, whose Math of two models is GSM8K alone."""
    scores = paper_scores()
    for row in paper_table().rows:
        for group, names in GROUPS.items():
            of_names = [scores.of(name)[row.name] for name in names]
            is_gsm8k = group == "Math" and row.name in ("Llama 2 7B", "Llama 2 13B")
            mean = of_names[0] if is_gsm8k else sum(of_names) / len(of_names)
            assert mean == pytest.approx(row.scores[group], abs=0.0501), (row.name, group)


def test_there_is_a_card_for_each_benchmark_of_the_table() -> None:
    names = {part.name for c in suite("llama2").columns if not c.safety for part in c.parts}
    assert set(cards()) == names == set(paper_scores().benchmarks)
    for card in cards().values():
        assert card.measures and card.format and card.license and card.sensitivity
        assert card.questions > 100 and 0 <= card.chance < 60
        assert (card.human is None) == (card.human_source == "")
        assert card.human is None or card.chance < card.human <= 100
        assert min(card.paper.values()) >= 0 and card.best < 100


def test_headroom_and_the_way_from_chance() -> None:
    piqa = cards()["PIQA"]
    assert piqa.headroom(84.9) == pytest.approx(10) and piqa.above_chance(50) == 0
    assert piqa.above_chance(94.9) == pytest.approx(1)
    humaneval = cards()["HumanEval"]
    assert humaneval.headroom() == pytest.approx(100 - 29.9)
    assert humaneval.to_dict()["best"] == 29.9
