"""Contamination: the definition by brute force, real questions in real text, the statistic."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from llama_fast.data import ShardWriter, TokenShards, contamination
from llama_fast.data.check import find_overlap, prepare_search, read_benchmarks
from llama_fast.data.contamination import (
    MatchRule,
    QuestionIndex,
    is_affected,
    split_scores,
    subsets,
)
from llama_fast.data.questions import read_questions
from llama_fast.data.rows import DataError
from llama_fast.tokenizers import load_tokenizer
from llama_fast.tokenizers.train_bpe import train_bpe
from tests.paths import data_file, mirror


def write(folder: Path, documents: list[list[int]], vocab_size: int, **options: int) -> TokenShards:
    with ShardWriter(folder, vocab_size=vocab_size, tokenizer={}, **options) as writer:  # type: ignore[arg-type]
        for document in documents:
            writer.add(document)
    return TokenShards(folder)


def by_definition(
    questions: list[list[int]], documents: list[list[int]], length: int, skips: int
) -> tuple[list[int], set[tuple[int, int]]]:
    """Every span of every question beside every span of every document."""
    exact = min(10, length)
    counts, pairs = [], set()
    for number, q in enumerate(questions):
        inside = set()
        for which, d in enumerate(documents):
            for i in range(len(q)):
                for j in range(len(d)):
                    for n in range(length, min(len(q) - i, len(d) - j) + 1):
                        equal = [a == b for a, b in zip(q[i : i + n], d[j : j + n], strict=True)]
                        if not all(equal[:exact]):
                            break
                        if equal[-1] and equal.count(False) <= skips:
                            inside |= set(range(i, i + n))
                            pairs.add((which, number))
        counts.append(len(inside))
    return counts, pairs


@pytest.mark.parametrize("seed", range(60))
def test_is_the_definition(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few kinds of tokens, and documents made of damaged pieces of questions: many matches."""
    # So small that chunks end within matches, and candidates are compared in several goes.
    monkeypatch.setattr(contamination, "CHUNK", 7)
    monkeypatch.setattr(contamination, "PAIRS", 5)
    draw = np.random.Generator(np.random.PCG64(seed))
    vocab = int(draw.choice([2, 3, 8]))
    questions = [draw.integers(0, vocab, draw.integers(0, 45)).tolist() for _ in range(5)]
    documents = []
    for _ in range(6):
        q = questions[draw.integers(len(questions))]
        begin = int(draw.integers(0, len(q) + 1))
        piece = [t if draw.random() < 0.9 else int(draw.integers(vocab)) for t in q[begin:]]
        around = draw.integers(0, vocab, (2, 4)).tolist()
        documents.append(around[0] + piece + around[1])
    length, skips = int(draw.integers(1, 15)), int(draw.integers(0, 5))
    shards = write(tmp_path / "s", documents, vocab, shard_tokens=60)
    found = QuestionIndex(questions, MatchRule(length, skips, min(10, length))).scan(shards)
    counts, pairs = by_definition(questions, documents, length, skips)
    assert found.contaminated.tolist() == counts
    assert found.tokens.tolist() == [len(q) for q in questions]
    assert [tuple(p) for p in found.pairs.tolist()] == sorted(pairs)


def test_real_questions_in_shakespeare(tmp_path: Path) -> None:
    """Questions planted whole, with as many altered tokens as are allowed, and with one more."""
    play = data_file("corpora/tinyshakespeare.txt").read_text()[:100_000]
    source = data_file("hub/openai/gsm8k/main/test.jsonl")
    texts = [q.text for q in read_questions(source, ["question"])][:200]
    tokenizer = train_bpe([play, *texts], 2000, tmp_path / "bpe")
    questions = [tokenizer.encode(text) for text in texts]
    speeches = [tokenizer.encode(speech) for speech in play.split("\n\n")]
    chosen = [i for i, ids in enumerate(questions) if 50 <= len(ids) < 70][:4]
    whole, within, over, early = (list(questions[i]) for i in chosen)
    for ids, places in ((within, (12, 20, 25, 30)), (over, (12, 20, 25, 30, 35)), (early, (5,))):
        for place in places:
            ids[place] = (ids[place] + 1) % 2000
    for at, planted in ((10, whole), (40, within), (90, over), (200, early)):
        speeches[at] = speeches[at] + planted + speeches[at + 1]
    shards = write(tmp_path / "s", speeches, 2000)

    found = QuestionIndex(questions).scan(shards)
    n = len(over)
    # Over budget: a match up to the fifth altered token, and another one after it. An altered token
    # among the first ten: a match from the token after it on.
    expected = [len(whole), len(within), n - 1, len(early) - 6]
    assert found.contaminated[chosen].tolist() == expected
    assert found.documents().tolist() == [10, 40, 90, 200]
    assert (np.delete(found.fractions, chosen) < 0.2).all()

    # Either part of the third is shorter than 36 tokens; one skip less ends the second at place 30.
    longer = QuestionIndex(questions, MatchRule(36)).scan(shards)
    assert longer.contaminated[chosen].tolist() == [len(whole), len(within), 0, len(early) - 6]
    strict = QuestionIndex(questions, MatchRule(skips=3)).scan(shards)
    assert strict.contaminated[chosen[1]] == len(within) - 1


def test_other_text_is_clean(tmp_path: Path) -> None:
    """Arithmetic is not in Shakespeare, and a book is in itself."""
    play = data_file("corpora/tinyshakespeare.txt").read_text()[:60_000]
    tokenizer = load_tokenizer("byte")
    speeches = [tokenizer.encode(s) for s in play.split("\n\n")]
    shards = write(tmp_path / "s", speeches, 257, shard_tokens=10_000)
    texts = [q.text for q in read_questions(data_file("hub/openai/gsm8k/main/test.jsonl"))][:99]
    arithmetic = QuestionIndex([tokenizer.encode(t) for t in texts], MatchRule.of(1.0)).scan(shards)
    assert not arithmetic.contaminated.any() and not len(arithmetic.pairs)
    long = [s for s in speeches if len(s) >= 44]
    assert (QuestionIndex(long, MatchRule.of(1.0)).scan(shards).fractions == 1).all()


def test_the_rule_grows_where_tokens_are_small() -> None:
    for size in (2.5, 4.0, 4.6, math.nan):
        assert MatchRule.of(size) == MatchRule(11, 4, 10)
    assert MatchRule.of(1.0) == MatchRule(44, 16, 40)
    assert MatchRule.of(2.0) == MatchRule(22, 8, 20)
    assert MatchRule.of(1.0, min_length=30, skips=2) == MatchRule(30, 2, 30)
    assert MatchRule.of(4.0, min_length=5) == MatchRule(5, 4, 5)


def test_byte_tokens_of_other_text_are_clean(tmp_path: Path) -> None:
    """With 11 byte tokens, one in three questions of arithmetic seems to be in Shakespeare."""
    play = data_file("corpora/tinyshakespeare.txt").read_text()
    source = data_file("hub/openai/gsm8k/main/test.jsonl")
    tokenizer = load_tokenizer("byte")
    benchmarks = read_benchmarks([str(source)], ["question"])
    questions = benchmarks[0].questions
    planted = questions[3].text
    documents = [tokenizer.encode(s) for s in [*play.strip().split("\n\n"), f"He said: {planted}"]]
    shards = write(tmp_path / "s", documents, 257)
    search = prepare_search(tokenizer, benchmarks)
    assert search.bytes_per_token == 1.0 and not search.says_nothing
    found = find_overlap(shards, search, lambda *_: None)
    assert found.fractions[3] == 1 and not np.delete(found.fractions, 3).any()
    assert found.documents().tolist() == [len(documents) - 1]
    short = prepare_search(tokenizer, benchmarks, 11, 4)
    assert short.says_nothing
    unadjusted = QuestionIndex(search.questions).scan(shards).fractions
    assert (unadjusted >= 0.2).mean() > 1 / 3


@pytest.mark.parametrize("form", ["as asked", "as stored"])
@pytest.mark.parametrize("first", [0, 5000])
def test_questions_of_hellaswag_as_text(tmp_path: Path, form: str, first: int) -> None:
    """Contexts with the right endings: all are dirty by the default text, in either form.

    Questions of ActivityNet, and of WikiHow with its marks. Wrong endings in the text hide them.
    """
    source = mirror() / "hub/Rowan/hellaswag/default/validation.jsonl"
    with source.open() as file:
        rows = [json.loads(line) for line in islice(file, first, first + 200)]
    benchmark = tmp_path / "hellaswag.jsonl"
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = [f"{row['ctx']} {row['endings'][int(row['label'])]}" for row in rows]
    if form == "as asked":
        documents = [question.text for question in read_questions(benchmark)]
    tokenizer = train_bpe(documents, 2000, tmp_path / "bpe")
    shards = write(tmp_path / "s", [tokenizer.encode(text) for text in documents], 2000)

    def dirty(fields: list[str] | None) -> int:
        search = prepare_search(tokenizer, read_benchmarks([str(benchmark)], fields))
        found = find_overlap(shards, search, lambda *_: None)
        assert len(found.fractions) == 200 and found.pairs[:, 1].max() < 200
        return int(subsets(found.fractions)["dirty"].sum())

    assert dirty(None) == 200
    assert dirty(["activity_label", "ctx_a", "ctx_b", "ctx", "endings"]) == 0


def test_subsets_meet_at_their_limits() -> None:
    found = {name: x.tolist() for name, x in subsets([0, 0.19, 2 / 10, 0.79, 8 / 10, 1]).items()}
    assert found == {
        "clean": [True, True, False, False, False, False],
        "not clean": [False, False, True, True, True, True],
        "not dirty": [True, True, True, True, False, False],
        "dirty": [False, False, False, False, True, True],
    }


def test_the_statistic_is_standard_normal_without_an_effect() -> None:
    """Scores drawn without regard to contamination: Z has mean 0 and variance 1 (less the share of
    the subset, which is part of the whole); with one, all four subsets say so."""
    draw = np.random.Generator(np.random.PCG64(0))
    fractions = np.repeat([0.0, 0.5, 1.0], [100, 1800, 100])
    z = np.array([[s.z for s in split_scores(draw.random(2000) < 0.6, fractions)]
                  for _ in range(2000)])[:, [0, 3]]  # fmt: skip
    assert abs(z.mean()) < 0.05 and z.var() == pytest.approx(1 - 100 / 2000, abs=0.05)
    fractions = np.repeat([0.0, 1.0], [1000, 1000])
    right = np.concatenate([draw.random(1000) < 0.5, draw.random(1000) < 0.6])
    scores = split_scores(right, fractions)
    assert is_affected(scores)
    assert [s.count for s in scores] == [1000] * 4
    assert scores[0].z < -2 and scores[3].z > 2
    by_hand = (right[1000:].mean() - right.mean()) / math.sqrt(
        right.mean() * (1 - right.mean()) / 1000
    )
    assert scores[3].z == pytest.approx(by_hand) and scores[3].contamination == 1
    # The same distance the other way: the dirty questions are harder, which is no contamination.
    harder = split_scores(1 - right, fractions)
    assert min(abs(s.z) for s in harder) > 2 and not is_affected(harder)
    # One subset alone is no evidence.
    assert not is_affected(split_scores(right, np.zeros(2000)))


def test_fields_of_a_benchmark(tmp_path: Path) -> None:
    unknown = tmp_path / "unknown" / "own.jsonl"
    unknown.parent.mkdir()
    row = {
        "id": "Mercury",
        "source_id": "x",
        "n": 3,
        "stem": "An astronomer",
        "options": {"text": ["a", "b"]},
    }
    unknown.write_text(json.dumps(row) + "\n")
    (own,) = read_questions(unknown)
    assert own.text == "An astronomer\na\nb" and own.benchmark is None
    arc = next(
        read_questions(data_file("hub/allenai/ai2_arc/ARC-Challenge/test.jsonl"), ["choices"])
    )
    assert arc.text.splitlines()[:2] == [
        "Planetary density will decrease.",
        "Planetary years will become longer.",
    ]  # in a list in an object
    assert arc.benchmark is None
    mmlu = list(read_questions(data_file("hub/cais/mmlu/astronomy"), ["choices", "question"]))
    assert len({q.file.name for q in mmlu}) == 3 and mmlu[0].index == 0
    assert mmlu[0].text.startswith("It would be harder since")
    with pytest.raises(DataError, match=r"dev\.jsonl:1: expected a field 'context', got"):
        next(read_questions(data_file("hub/cais/mmlu/astronomy"), ["context"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected \.jsonl"):
        next(read_questions(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="against: no such file"):
        next(read_questions(tmp_path / "no"))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="min_length: expected at least 1, got 0"):
        QuestionIndex([], MatchRule(0))
    with pytest.raises(ValueError, match="skips: expected a number >= 0, got -1"):
        QuestionIndex([], MatchRule(skips=-1))
    with pytest.raises(ValueError, match="exact: expected a number from 1 to 5, got 10"):
        QuestionIndex([], MatchRule(5))
    with pytest.raises(ValueError, match="scores: expected one for each of 2 questions"):
        split_scores([1.0], [0.1, 0.2])


def test_no_questions_are_no_overlap(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    shards = write(tmp_path / "s", [[1, 2, 3]], 257)
    search = prepare_search(
        load_tokenizer("byte"), read_benchmarks([str(tmp_path / "none.jsonl")], None)
    )
    found = find_overlap(shards, search, lambda *_: None)
    assert found.fractions.shape == (0,) and found.documents().shape == (0,)
