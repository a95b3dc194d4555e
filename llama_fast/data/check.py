"""What is wrong with token shards, and new shards without the documents that are concerned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_fast.data.contamination import Overlap, QuestionIndex, subsets
from llama_fast.data.questions import Question, read_questions
from llama_fast.data.secrets import EMAIL, Finding, find_secrets
from llama_fast.data.shards import ShardWriter, TokenShards
from llama_fast.data.tokenizer import keep_tokenizer
from llama_fast.tokenizers import Tokenizer

CONTAMINATION, SECRETS, DROPPED = "contamination.json", "secrets.json", "dropped.jsonl"
REASONS = ("contaminated", "secrets", "emails")

Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's questions, which are those from `first` on of an :class:`Overlap`."""

    name: str
    first: int
    questions: list[Question]


def read_benchmarks(names: Sequence[str], fields: Sequence[str] | None) -> list[Benchmark]:
    """The benchmarks of these files and folders; raises as :func:`read_questions`."""
    benchmarks, first = [], 0
    for name in names:
        questions = list(read_questions(name, fields))
        benchmarks.append(Benchmark(name, first, questions))
        first += len(questions)
    return benchmarks


def find_overlap(
    shards: TokenShards,
    tokenizer: Tokenizer,
    benchmarks: Sequence[Benchmark],
    *,
    min_length: int,
    skips: int,
    progress: Progress,
) -> Overlap:
    """Contamination of all questions of the benchmarks."""
    ids = [tokenizer.encode(q.text) for benchmark in benchmarks for q in benchmark.questions]
    return QuestionIndex(ids, min_length=min_length, skips=skips).scan(shards, progress)


def contamination_report(
    shards: TokenShards, benchmarks: Sequence[Benchmark], overlap: Overlap, **options: Any
) -> dict[str, Any]:
    """What `contamination.json` holds: of each question its file, row, tokens, share, subsets."""
    member = subsets(overlap.fractions)
    report: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        rows: list[dict[str, Any]] = [
            {
                "file": str(question.file),
                "index": question.index,
                "tokens": int(overlap.tokens[number]),
                "fraction": float(overlap.fractions[number]),
                "subsets": [name for name, inside in member.items() if inside[number]],
            }
            for number, question in enumerate(benchmark.questions, benchmark.first)
        ]
        counts = {name: sum(name in row["subsets"] for row in rows) for name in member}
        report.append({"name": benchmark.name, "counts": counts, "questions": rows})
    of = {"folder": str(shards.folder), "content_sha256": shards.content_sha256}
    return {"shards": of, **options, "benchmarks": report}


def find_all_secrets(
    shards: TokenShards, tokenizer: Tokenizer, progress: Progress
) -> dict[int, list[Finding]]:
    """Findings in each document's text, by its number; documents without any are left out."""
    found = {}
    for document in range(len(shards)):
        if findings := list(find_secrets(tokenizer.decode(shards.read(document)[0].tolist()))):
            found[document] = findings
        if document % 256 == 0:
            progress(document, len(shards), "")
    return found


def secrets_report(found: dict[int, list[Finding]]) -> dict[str, Any]:
    """What `secrets.json` holds: the number of each kind, and every finding, masked."""
    counts = Counter(finding.kind for findings in found.values() for finding in findings)
    rows = [
        {"document": document, "kind": finding.kind, "masked": finding.masked}
        for document, findings in found.items()
        for finding in findings
    ]
    return {"counts": dict(counts.most_common()), "findings": rows}


def documents_to_drop(
    reasons: Sequence[str], overlap: Overlap | None, found: dict[int, list[Finding]]
) -> dict[int, list[str]]:
    """Each document that one of the reasons is true of, with what was found.

    "contaminated" is one that matches a question which is not clean; "secrets" are all kinds but
    e-mail addresses.
    """
    drop: dict[int, list[str]] = {}
    if "contaminated" in reasons and overlap is not None:
        for document in overlap.documents().tolist():
            drop.setdefault(document, []).append("contaminated")
    for document, findings in found.items():
        for kind in sorted({finding.kind for finding in findings}):
            if ("emails" if kind == EMAIL else "secrets") in reasons:
                drop.setdefault(document, []).append(kind)
    return dict(sorted(drop.items()))


def write_without(
    shards: TokenShards, drop: dict[int, list[str]], out: Path, reports: dict[str, dict[str, Any]]
) -> None:
    """Write the other documents to new shards, beside the reports and a log of what is missing.

    Raises:
        FileExistsError: there is such a folder.
        DataError: no document is left, or the shards name a tokenizer that is not theirs to name.
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
                writer.add(tokens, answer if shards.has_answers else None)  # type: ignore[arg-type]
        # A tokenizer that was learned from the documents is kept beside them.
        writer.tokenizer = keep_tokenizer(shards, writer.partial)
        with (writer.partial / DROPPED).open("w", encoding="utf-8") as log:
            for document, found in drop.items():
                log.write(json.dumps({"document": document, "found": found}) + "\n")
        write_reports(reports, writer.partial)


def write_reports(reports: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write each report to the file of its name."""
    for name, report in reports.items():
        (folder / name).write_text(json.dumps(report, indent=1), encoding="utf-8")
