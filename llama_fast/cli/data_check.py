"""`llama-fast data check`: benchmark questions, secrets and e-mail addresses in training data."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast._format import counted
from llama_fast._terminal import show
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_json, add_out, print_json, tables

if TYPE_CHECKING:
    from llama_fast.data.check import Search


class Check(Command):
    """Checks token shards."""

    name = "check"
    help = "find benchmark questions, secrets and e-mail addresses in token shards"
    extra = "train"
    packages = ("rich",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "shards", metavar="SHARDS", type=Path, help="folder that `llama-fast tokenize` wrote"
        )
        parser.add_argument(
            "--against",
            nargs="+",
            default=[],
            metavar="BENCHMARK",
            help=".jsonl files with questions, or folders of them; each is one benchmark",
        )
        parser.add_argument(
            "--fields",
            metavar="A,B",
            help="fields that make up a question (default: the question as the suite asks it, with "
            "the right answer; for rows of unknown benchmarks all texts except identifiers)",
        )
        parser.add_argument(
            "--min-length",
            type=int,
            metavar="L",
            help="minimum length of a match in tokens (default: 11 as in Llama 2, or 44 bytes if "
            "tokens are smaller than 2.5 bytes)",
        )
        parser.add_argument(
            "--skips",
            type=int,
            metavar="N",
            help="tokens of a match that may differ (default: 4, or in proportion to L)",
        )
        parser.add_argument(
            "--no-secrets", action="store_true", help="look for benchmark questions only"
        )
        add_out(parser, "new folder for contamination.json and secrets.json")
        parser.add_argument(
            "--drop",
            metavar="A,B",
            help="also write the shards to DIR without some documents: contaminated (they match a "
            "question that is not clean), secrets, emails",
        )
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Search for benchmark questions and secrets; print findings, write the requested files."""
        from llama_fast._screen import Screen
        from llama_fast.data import TokenShards
        from llama_fast.data import check as checks
        from llama_fast.data.tokenizer import tokenizer_of

        drop = _reasons(args)
        if args.out is not None and args.out.exists():
            raise FileExistsError(f"--out: exists already: {args.out}")
        fields = None if args.fields is None else args.fields.split(",")
        shards = TokenShards(args.shards)
        tokenizer = tokenizer_of(shards)
        reports: dict[str, Any] = {}
        with tables(args):
            screen = Screen()
            overlap, secrets = None, {}
            if args.against:
                benchmarks = checks.read_benchmarks(args.against, fields)
                search = checks.prepare_search(tokenizer, benchmarks, args.min_length, args.skips)
                if search.says_nothing and "contaminated" in drop:
                    raise ValueError(_too_short(search))
                with screen.bar("Comparing with benchmarks", "tokens") as progress:
                    overlap = checks.find_overlap(shards, search, progress)
                report = checks.contamination_report(shards, benchmarks, overlap, search, fields)
                reports[checks.CONTAMINATION] = report
                screen.console.print(_contamination_table(report))
                for line in _text_lines(report):
                    screen.console.print(line, markup=False)
                if not math.isnan(search.bytes_per_token):
                    screen.console.print(_rule_line(search), markup=False)
            if not args.no_secrets:
                with screen.bar("Looking for secrets", "documents") as progress:
                    secrets = checks.find_all_secrets(shards, tokenizer, progress)
                reports[checks.SECRETS] = checks.secrets_report(secrets)
                screen.console.print(_secrets_table(reports[checks.SECRETS]))
            if drop:
                without = checks.documents_to_drop(drop, overlap, secrets)
                checks.write_without(shards, without, args.out, reports)
                left = TokenShards(args.out)
                show(
                    f"{args.out}: {counted(len(left), 'document')} and "
                    f"{counted(left.num_tokens, 'token')} left, "
                    f"{counted(len(without), 'document')} dropped ({checks.DROPPED})\n"
                    f"sha256 {left.content_sha256}"
                )
            elif args.out is not None:
                args.out.mkdir(parents=True)
                checks.write_reports(reports, args.out)
                show(f"{args.out}: {', '.join(reports)}")
        if args.json:
            print_json({name.removesuffix(".json"): report for name, report in reports.items()})
        return ExitCode.OK


def _reasons(args: argparse.Namespace) -> list[str]:
    """Return the reasons of --drop, after a check that the other options allow them."""
    from llama_fast.data.check import REASONS

    reasons = args.drop.split(",") if args.drop is not None else []
    if wrong := [reason for reason in reasons if reason not in REASONS]:
        raise ValueError(f"--drop: expected some of {', '.join(REASONS)}, got {wrong[0]!r}")
    if reasons and args.out is None:
        raise ValueError("--out: expected a folder for the shards that --drop writes, got none")
    if "contaminated" in reasons and not args.against:
        raise ValueError("--drop: expected --against with 'contaminated', got none")
    if args.no_secrets and {"secrets", "emails"} & set(reasons):
        raise ValueError("--drop: expected no --no-secrets with 'secrets' or 'emails'")
    if args.no_secrets and not args.against:
        raise ValueError("--against: expected benchmarks with --no-secrets, got none")
    return reasons


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _contamination_table(report: dict[str, Any]) -> Any:
    rows = []
    names = _short_names([benchmark["name"] for benchmark in report["benchmarks"]])
    for benchmark, name in zip(report["benchmarks"], names, strict=True):
        questions = benchmark["questions"]
        mean = sum(row["fraction"] for row in questions) / max(1, len(questions))
        clean, dirty = (benchmark["counts"][subset] for subset in ("clean", "dirty"))
        numbers = (len(questions), clean, len(questions) - clean - dirty, dirty)
        n, *counts = (f"{number:,}" for number in numbers)
        rows.append([name, n, f"{100 * mean:.1f} %", *counts])
    columns = ("benchmark", "n", "mean", "clean\n<20 %", "between", "dirty\n≥80 %")
    return _table("Contamination of benchmark questions", columns, rows)


def _short_names(paths: Sequence[str]) -> list[str]:
    """Return the ends of some paths, as long as it takes to tell them apart."""
    for length in range(1, 1 + max(len(Path(path).parts) for path in paths)):
        names = ["/".join(Path(path).parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _text_lines(report: dict[str, Any]) -> list[str]:
    """Return how the texts of the questions were made, a line for each way."""
    from llama_fast.data.check import FIELDS

    if report["fields"] is not None:
        return [f"Text of a question: its fields {', '.join(report['fields'])}"]
    known: Counter[str] = Counter()
    lines = []
    for benchmark in report["benchmarks"]:
        rows = Counter(benchmark["texts"])
        if others := rows.pop(FIELDS, 0):
            lines.append(
                f"{benchmark['name']}: {counted(others, 'row')} of no known benchmark, whose text "
                "is all fields except identifiers; --fields chooses those of the question"
            )
        known += rows
    if known:
        names = ", ".join(f"{name} ({counted(n, 'row')})" for name, n in known.items())
        lines.insert(
            0, f"Text of a question: as the suite asks it, with the right answer, for {names}"
        )
    return lines


def _rule_line(search: Search) -> str:
    """Return the rule of a match as a sentence, with the reason for its length."""
    from llama_fast.data.contamination import MatchRule

    rule, size = search.rule, search.bytes_per_token
    if search.says_nothing:
        why = ": so short that any text has them, the shares above say nothing"
    elif rule == MatchRule():
        why = ": the rule of the Llama 2 paper"
    else:
        why = ""
    return (
        f"A match has {rule.min_length} tokens or more; the first {rule.exact} are equal, and "
        f"{rule.skips} may differ. Tokens of these questions have {size:.1f} bytes on average, so "
        f"this is about {rule.min_length * size:.0f} bytes{why}"
    )


def _too_short(search: Search) -> str:
    from llama_fast.data.contamination import MIN_BYTES

    size, length = search.bytes_per_token, search.rule.min_length
    return (
        f"--min-length: expected at least {math.ceil(MIN_BYTES / size)} with --drop contaminated "
        f"(tokens of these questions have {size:.1f} bytes on average, and shorter matches are in "
        f"any text), got {length}"
    )


def _secrets_table(report: dict[str, Any], shown: int = 5) -> Any:
    rows = []
    for kind, count in report["counts"].items():
        documents = sorted({f["document"] for f in report["findings"] if f["kind"] == kind})
        names = ", ".join(map(str, documents[:shown])) + (", ..." if documents[shown:] else "")
        rows.append([kind, f"{count:,}", f"{len(documents):,}", names])
    if not rows:
        return "No secrets and no e-mail addresses found"
    return _table("Secrets and e-mail addresses", ("kind", "found", "in documents", "which"), rows)


COMMAND = Check()
