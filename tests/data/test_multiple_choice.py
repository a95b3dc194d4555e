"""Files of multiple-choice questions."""

import json
from pathlib import Path

import pytest

from llama_fast.data import DataError
from llama_fast.data.multiple_choice import MultipleChoice, read_multiple_choice, sample
from tests.paths import mirror


def test_questions_of_the_hub_are_understood(tmp_path: Path) -> None:
    path = mirror() / "hub/allenai/openbookqa/main/validation.jsonl"
    questions = read_multiple_choice(path)
    assert len(questions) == 500
    first = json.loads(path.read_text().splitlines()[0])
    assert questions[0].context == f"Question: {first['question_stem']}\nAnswer:"
    assert (
        questions[0].choices[questions[0].gold]
        == dict(zip(first["choices"]["label"], first["choices"]["text"], strict=True))[
            first["answerKey"]
        ]
    )
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"context": "a", "choices": ["b", "c"], "gold": 2}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: expected context, choices and gold"):
        read_multiple_choice(bad)
    bad.write_text('\n{"context": "a"\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2: not JSON"):
        read_multiple_choice(bad)


def test_empty_lines_between_questions_are_passed_over(tmp_path: Path) -> None:
    row = '{"context": "a", "choices": ["b", "c"], "gold": 1}\n'
    file = tmp_path / "some.jsonl"
    file.write_text(f"\n{row}\n  \n{row}\n")
    assert [question.id for question in read_multiple_choice(file)] == ["some-1", "some-2"]
    file.write_text("\n\n")
    with pytest.raises(DataError, match="expected questions, the file is empty"):
        read_multiple_choice(file)


def test_sample_is_a_seeded_draw() -> None:
    questions = [MultipleChoice(str(i), "context", ("a", "b"), 0) for i in range(100)]
    first = sample(questions, 10, seed=1)
    assert first == sample(questions, 10, seed=1) != sample(questions, 10, seed=2)
    assert len(set(first)) == 10
    assert first != questions[:10]
    assert sorted(sample(questions, 1000), key=lambda q: int(q.id)) == questions
