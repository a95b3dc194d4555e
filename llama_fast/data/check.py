"""Checks token shards for benchmark questions and secrets, and writes shards without them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_fast.data.contamination import MIN_BYTES, MatchRule, Overlap, QuestionIndex, subsets
from llama_fast.data.questions import QuestionText, read_questions
from llama_fast.data.secrets import EMAIL, Finding, find_secrets
from llama_fast.data.shards import ShardWriter, TokenShards
from llama_fast.data.tokenizer import copy_tokenizer
from llama_fast.tokenizers import Tokenizer

CONTAMINATION, SECRETS, DROPPED = "contamination.json", "secrets.json", "dropped.jsonl"
FIELDS = "fields"  # how the text of a question was made that no known benchmark has
REASONS = ("contaminated", "secrets", "emails")

Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class BenchmarkQuestions:
    """The questions of one benchmark.

    Attributes:
        name: file or folder from which they were read.
        first: index of the first question in an :class:`Overlap` of several benchmarks.
        questions: the questions.
    """

    name: str
    first: int
    questions: list[QuestionText]


def read_benchmarks(names: Sequence[str], fields: Sequence[str] | None) -> list[BenchmarkQuestions]:
    """Read the questions of benchmarks from files and folders; see :func:`read_questions`."""
    benchmarks, first = [], 0
    for name in names:
        questions = list(read_questions(name, fields))
        benchmarks.append(BenchmarkQuestions(name, first, questions))
        first += len(questions)
    return benchmarks


@dataclass(frozen=True)
class Search:
    """The questions as tokens, and what counts as a match with them.

    Attributes:
        questions: token ids of each text of each question.
        owners: (texts,) int64, index of the question of each text, ascending.
        bytes_per_token: mean number of bytes of a token in the questions; NaN without tokens.
        rule: what counts as a match.
    """

    questions: list[list[int]]
    owners: npt.NDArray[np.int64]
    bytes_per_token: float
    rule: MatchRule

    @property
    def says_nothing(self) -> bool:
        """Whether matches are so short that they are found in any text."""
        return self.rule.min_length * self.bytes_per_token < MIN_BYTES


def prepare_search(
    tokenizer: Tokenizer,
    benchmarks: Sequence[BenchmarkQuestions],
    min_length: int | None = None,
    skips: int | None = None,
) -> Search:
    """Encode the questions and choose the lengths of a match by the size of their tokens.

    Args:
        tokenizer: the tokenizer of the shards.
        benchmarks: the benchmarks whose questions are searched for.
        min_length, skips: see :meth:`MatchRule.of`.

    Raises:
        ValueError: `min_length` is below 1, or `skips` is negative.
    """
    questions = [(q.text, *q.also) for benchmark in benchmarks for q in benchmark.questions]
    texts = [text for question in questions for text in question]
    counts = np.array([len(question) for question in questions], dtype=np.int64)
    owners = np.repeat(np.arange(len(questions)), counts)
    ids = [tokenizer.encode(text) for text in texts]
    tokens, size = sum(map(len, ids)), sum(len(text.encode()) for text in texts)
    bytes_per_token = size / tokens if tokens else math.nan
    return Search(ids, owners, bytes_per_token, MatchRule.of(bytes_per_token, min_length, skips))


def find_overlap(shards: TokenShards, search: Search, progress: Progress) -> Overlap:
    """Compute the contamination of all questions.

    That of a question with several texts is the highest of theirs.

    Args:
        shards: the training data.
        search: the questions, from :func:`prepare_search`.
        progress: called as ``progress(tokens done, number of tokens, "")``.
    """
    found = QuestionIndex(search.questions, search.rule).scan(shards, progress)
    owners = search.owners
    # Texts by question and contamination: the last one of each question is its highest.
    order = np.lexsort((found.fractions, owners))
    best = order[np.flatnonzero(np.diff(owners, append=-1))]
    pairs = np.stack([found.pairs[:, 0], owners[found.pairs[:, 1]]], axis=1)
    return Overlap(found.tokens[best], found.contaminated[best], np.unique(pairs, axis=0))


def contamination_report(
    shards: TokenShards,
    benchmarks: Sequence[BenchmarkQuestions],
    overlap: Overlap,
    search: Search,
    fields: Sequence[str] | None,
) -> dict[str, Any]:
    """Content of `contamination.json`: each question's file, row, contamination and subsets.

    `texts` counts the questions by how their text was made: benchmark -> number of rows that were
    recognised as its own, and :data:`FIELDS` -> number of rows whose text is fields.
    """
    members = subsets(overlap.fractions)
    report: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        rows: list[dict[str, Any]] = [
            {
                "file": str(question.file),
                "index": question.index,
                "tokens": int(overlap.tokens[number]),
                "fraction": float(overlap.fractions[number]),
                "subsets": [name for name, inside in members.items() if inside[number]],
            }
            for number, question in enumerate(benchmark.questions, benchmark.first)
        ]
        counts = {name: sum(name in row["subsets"] for row in rows) for name in members}
        texts = Counter(question.benchmark or FIELDS for question in benchmark.questions)
        report.append(
            {"name": benchmark.name, "texts": dict(texts), "counts": counts, "questions": rows}
        )
    source = {"folder": str(shards.folder), "content_sha256": shards.content_sha256}
    size = search.bytes_per_token
    return {
        "shards": source,
        "fields": fields,
        "bytes_per_token": None if math.isnan(size) else size,
        **asdict(search.rule),
        "benchmarks": report,
    }


def find_all_secrets(
    shards: TokenShards, tokenizer: Tokenizer, progress: Progress
) -> dict[int, list[Finding]]:
    """Index of a document -> its findings; documents without findings are left out."""
    findings_of = {}
    for document in range(len(shards)):
        if findings := list(find_secrets(tokenizer.decode(shards.read(document)[0].tolist()))):
            findings_of[document] = findings
        if document % 256 == 0:
            progress(document, len(shards), "")
    return findings_of


def secrets_report(findings_of: dict[int, list[Finding]]) -> dict[str, Any]:
    """Content of `secrets.json`: the number of findings per kind, and every masked finding."""
    counts = Counter(finding.kind for findings in findings_of.values() for finding in findings)
    rows = [
        {"document": document, "kind": finding.kind, "masked": finding.masked}
        for document, findings in findings_of.items()
        for finding in findings
    ]
    return {"counts": dict(counts.most_common()), "findings": rows}


def documents_to_drop(
    reasons: Sequence[str], overlap: Overlap | None, findings_of: dict[int, list[Finding]]
) -> dict[int, list[str]]:
    """Index of a document to drop -> what was found in it.

    Args:
        reasons: why documents are dropped, from :data:`REASONS`. "contaminated": the document
            matches a question that is not clean; "secrets": it has findings other than e-mail
            addresses; "emails": it has e-mail addresses.
        overlap: the result of :func:`find_overlap`; needed for "contaminated".
        findings_of: the result of :func:`find_all_secrets`.
    """
    drop: dict[int, list[str]] = {}
    if "contaminated" in reasons and overlap is not None:
        for document in overlap.documents().tolist():
            drop.setdefault(document, []).append("contaminated")
    for document, findings in findings_of.items():
        for kind in sorted({finding.kind for finding in findings}):
            if ("emails" if kind == EMAIL else "secrets") in reasons:
                drop.setdefault(document, []).append(kind)
    return dict(sorted(drop.items()))


def write_without(
    shards: TokenShards, drop: dict[int, list[str]], out: Path, reports: dict[str, dict[str, Any]]
) -> None:
    """Write new shards without some documents, with the reports and a log of dropped documents.

    Args:
        shards: the shards to copy from.
        drop: the result of :func:`documents_to_drop`.
        out: the folder to create.
        reports: file name -> report to write to it.

    Raises:
        FileExistsError: `out` exists.
        DataError: no document is left, or the index names a tokenizer outside its folder.
    """
    with ShardWriter(
        out,
        vocab_size=shards.vocab_size,
        tokenizer=shards.tokenizer,
        with_answers=shards.has_answers,
    ) as writer:
        for document in range(len(shards)):
            if document not in drop:
                tokens, answer = shards.read(document)
                writer.add(tokens, answer if shards.has_answers else None)
        # A tokenizer in the folder of the shards is copied with them.
        writer.tokenizer = copy_tokenizer(shards, writer.partial)
        with (writer.partial / DROPPED).open("w", encoding="utf-8") as log:
            for document, reasons in drop.items():
                log.write(json.dumps({"document": document, "found": reasons}) + "\n")
        write_reports(reports, writer.partial)


def write_reports(reports: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write each report as JSON to the file of its name in a folder."""
    for name, report in reports.items():
        (folder / name).write_text(json.dumps(report, indent=1), encoding="utf-8")
