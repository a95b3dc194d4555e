import gzip
import json
import re
from pathlib import Path

import pytest

from llama_fast.data.benchmark_tables import arc, boolq_passages, hellaswag, read_table
from llama_fast.data.multiple_choice import MultipleChoice
from tests.paths import benchmark_data


@pytest.fixture(scope="module")
def benchmarks() -> Path:
    return benchmark_data()


def requests_of_olmo(root: Path, task: str) -> list[tuple[str, str, int]]:
    """(context, continuation, right choice) as AI2's harness words them, zero-shot."""
    with gzip.open(root / f"oe_eval_tasks/{task}/rc_0shot/requests.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    # From 1,000,000 on the same choices follow without the question, for another metric.
    return [
        (row["request"]["context"], row["request"]["continuation"], row["label"])
        for row in rows
        if row["doc_id"] < 1_000_000
    ]


def requests_of_ours(questions: list[MultipleChoice]) -> list[tuple[str, str, int]]:
    return [(q.context, " " + choice, q.gold) for q in questions for choice in q.choices]


def test_arc_is_worded_as_olmo_does(benchmarks: Path) -> None:
    ours = requests_of_ours(arc(benchmarks))
    assert len(ours) == 2281
    assert ours == requests_of_olmo(benchmarks, "arc_easy")


def test_hellaswag_is_worded_as_olmo_does(benchmarks: Path) -> None:
    """All 40,168 requests, but for one habit: OLMo drops a second full stop before a heading.

    We keep it, as lm-evaluation-harness does.
    """

    def one_stop(rows: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
        return [(*(re.sub(r"\.+ ", ". ", text) for text in row[:2]), row[2]) for row in rows]

    ours = requests_of_ours(hellaswag(benchmarks))
    assert len(ours) == 40_168
    assert one_stop(ours) == one_stop(requests_of_olmo(benchmarks, "hellaswag"))


def test_sizes_and_ranges(benchmarks: Path) -> None:
    for questions, count in (
        (hellaswag(benchmarks), 10_042),
        (arc(benchmarks), 570),
        (arc(benchmarks, "ARC-Challenge"), 299),
    ):
        assert len(questions) == count
        assert len({q.id for q in questions}) > 0.9 * count
        for question in questions:
            assert 0 <= question.gold < len(question.choices)
            assert all(question.choices)
            assert question.context == question.context.rstrip()


def test_boolq_passages(benchmarks: Path) -> None:
    passages = boolq_passages(benchmarks)
    assert len(passages) == len(set(passages)) == 2938
    assert passages[0].startswith("All biomass goes through")


def test_missing_split_names_those_there_are(benchmarks: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no piqa/nothing.*piqa/plain_text/validation"):
        read_table(benchmarks, "piqa", "nothing")


def test_damaged_table(benchmarks: Path, tmp_path: Path) -> None:
    name = "hf_datasets/ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow"
    copy = tmp_path / name
    copy.parent.mkdir(parents=True)
    copy.write_bytes((benchmarks / name).read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not an Arrow stream"):
        read_table(tmp_path, "ai2_arc", "ARC-Easy")
