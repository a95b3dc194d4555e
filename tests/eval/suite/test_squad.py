"""SQuAD 2.0's scores of made-up answerers, and GSM8K's pattern."""

from __future__ import annotations

import re

from llama_fast.eval.suite.mirror import lacks_titles
from llama_fast.eval.suite.squad import HarnessSquadV2, SquadV2
from llama_fast.eval.suite.variants import VARIANTS

DOCS = [
    {
        "id": "a",
        "title": "T",
        "context": "It is red.",
        "question": "Colour?",
        "answers": {"text": ["red"]},
    },
    {
        "id": "b",
        "title": "T",
        "context": "It is red.",
        "question": "Size?",
        "answers": {"text": []},
    },
]


def _scores(texts: list[str]) -> dict[str, float]:
    task = SquadV2.__new__(SquadV2)
    rows = [task.process_results(d, [t, (-1.0, False)]) for d, t in zip(DOCS, texts, strict=True)]
    return {name: f([row[name] for row in rows]) for name, f in task.aggregation().items()}


def test_a_perfect_answerer_reaches_100() -> None:
    for word in (" unanswerable", " Unanswerable.", " no answer", ""):
        scores = _scores([" red", word])
        names = ("exact", "f1", "HasAns_exact", "NoAns_exact", "best_exact")
        assert [scores[name] for name in names] == [100.0] * 5


def test_the_word_is_wrong_where_there_is_an_answer() -> None:
    scores = _scores([" unanswerable", " red"])
    assert scores["exact"] == 0.0 and scores["NoAns_exact"] == 0.0


def test_only_our_prompt_invites_the_word() -> None:
    stock = HarnessSquadV2.__new__(HarnessSquadV2).doc_to_text(DOCS[0])
    ours = SquadV2.__new__(SquadV2).doc_to_text(DOCS[0])
    assert "unanswerable" not in stock and ours.endswith(stock) and "unanswerable" in ours


def test_gsm8k_reads_the_whole_number() -> None:
    pattern = VARIANTS["gsm8k_cot"].changes["filter_list"][0]["filter"][0]["regex_pattern"]
    for text, number in (
        ("18", "18"),
        ("18.", "18"),
        ("1,800.", "1,800"),
        ("-3.5 m", "-3.5"),
        ("7", "7"),
    ):
        assert re.findall(pattern, f"The answer is {text}") == [number]


def test_boolq_without_titles_is_recognised() -> None:
    assert lacks_titles({"validation": [{"passage": "It is red."}]})
    assert not lacks_titles({"validation": [{"passage": "Barn -- It is red."}]})
