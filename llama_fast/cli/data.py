"""`llama-fast data`: is training data safe to train on, and to evaluate after."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_fast._terminal import show

HELP = "check training data: benchmark questions, secrets and e-mails in it; plant canaries"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's subcommands and their options."""
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    _add_check(actions)
    _add_plant(actions)


def run(args: argparse.Namespace) -> int:
    """Do what the subcommand says."""
    return int(args.do(args))


def _add_check(actions: Any) -> None:
    about = "find benchmark questions, secrets and e-mail addresses in token shards"
    parser = actions.add_parser("check", help=about, description=about)
    parser.add_argument("shards", type=Path, help="folder that `llama-fast tokenize` wrote")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="BENCHMARK",
        help=".jsonl files or folders of them with questions; each is a benchmark of its own",
    )
    parser.add_argument(
        "--fields",
        metavar="A,B",
        help="fields that make up a question (default: every text but identifiers)",
    )
    parser.add_argument(
        "--min-length",
        type=int,
        default=11,
        metavar="L",
        help="fewest tokens of a match (default: 11; about 50 where tokens are bytes)",
    )
    parser.add_argument(
        "--skips", type=int, default=4, metavar="N", help="tokens of a match that may differ"
    )
    parser.add_argument(
        "--no-secrets", action="store_true", help="look for benchmark questions alone"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to be made, with contamination.json and secrets.json",
    )
    parser.add_argument(
        "--drop",
        metavar="A,B",
        help="also write shards without some documents into DIR: those that match a question that "
        "is not clean (contaminated), that have secrets, that have emails",
    )
    parser.set_defaults(do=check)


def _add_plant(actions: Any) -> None:
    about = "plant random secrets in a copy of a corpus; `llama-fast eval canary` measures them"
    parser = actions.add_parser("plant", help=about, description=about)
    parser.add_argument("source", type=Path, help=".txt or .jsonl file (also .gz)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to be made, for the copy"
    )
    parser.add_argument(
        "--format", default="The secret number is {digits}", help="text with {digits} in it"
    )
    parser.add_argument("--digits", type=int, default=6, metavar="N", help="random digits of each")
    parser.add_argument(
        "--repeats",
        default="0,1,5,25",
        metavar="K,...",
        help="a canary for each number, planted as often; 0 is one for comparison",
    )
    parser.add_argument("--key", default="text", help="field of a .jsonl row that holds the text")
    parser.add_argument("--seed", type=int, default=0, help="of the digits and the places")
    parser.set_defaults(do=plant)


def plant(args: argparse.Namespace) -> int:
    """Write the corpus with canaries, and the list of them."""
    from llama_fast.data.canaries import plant

    try:
        repeats = [int(k) for k in args.repeats.split(",")]
    except ValueError:
        raise ValueError(f"repeats: expected numbers like 0,1,5, got {args.repeats!r}") from None
    planted = plant(
        args.source,
        args.out,
        format=args.format,
        digits=args.digits,
        repeats=repeats,
        key=args.key,
        seed=args.seed,
    )
    print(f"{args.out}: {len(planted.canaries)} canaries, {sum(repeats)} lines planted")
    return 0


def check(args: argparse.Namespace) -> int:
    """Look for benchmark questions and secrets; print, and write what `--out` asks for."""
    from llama_fast._screen import Screen
    from llama_fast.data import TokenShards
    from llama_fast.data import check as checks
    from llama_fast.data.tokenizer import tokenizer_of

    drop = _reasons(args)
    if args.out is not None and args.out.exists():
        raise FileExistsError(f"out: exists already: {args.out}")
    fields = None if args.fields is None else args.fields.split(",")
    shards = TokenShards(args.shards)
    tokenizer = tokenizer_of(shards)
    screen, reports = Screen(), {}
    overlap, found = None, {}
    if args.against:
        benchmarks = checks.read_benchmarks(args.against, fields)
        options = {"min_length": args.min_length, "skips": args.skips}
        with screen.bar("Comparing with benchmarks", "tokens") as progress:
            overlap = checks.find_overlap(
                shards, tokenizer, benchmarks, progress=progress, **options
            )
        report = checks.contamination_report(shards, benchmarks, overlap, fields=fields, **options)
        reports[checks.CONTAMINATION] = report
        screen.console.print(_contamination_table(report))
    if not args.no_secrets:
        with screen.bar("Looking for secrets", "documents") as progress:
            found = checks.find_all_secrets(shards, tokenizer, progress)
        reports[checks.SECRETS] = checks.secrets_report(found)
        screen.console.print(_secrets_table(reports[checks.SECRETS]))
    if drop:
        without = checks.documents_to_drop(drop, overlap, found)
        checks.write_without(shards, without, args.out, reports)
        left = TokenShards(args.out)
        show(
            f"{args.out}: {len(left):,} documents and {left.num_tokens:,} tokens left, "
            f"{len(without):,} documents dropped ({checks.DROPPED})\nsha256 {left.content_sha256}"
        )
    elif args.out is not None:
        args.out.mkdir(parents=True)
        checks.write_reports(reports, args.out)
        show(f"{args.out}: {', '.join(reports)}")
    return 0


def _reasons(args: argparse.Namespace) -> list[str]:
    """What `--drop` names, after a check that all of it is looked for."""
    from llama_fast.data.check import REASONS

    reasons = args.drop.split(",") if args.drop is not None else []
    if wrong := [reason for reason in reasons if reason not in REASONS]:
        raise ValueError(f"drop: expected some of {', '.join(REASONS)}, got {wrong[0]!r}")
    if reasons and args.out is None:
        raise ValueError("out: expected a folder for the shards that --drop writes, got none")
    if "contaminated" in reasons and not args.against:
        raise ValueError("drop: expected --against beside 'contaminated', got none")
    if args.no_secrets and {"secrets", "emails"} & set(reasons):
        raise ValueError("drop: expected no --no-secrets beside 'secrets' or 'emails'")
    if args.no_secrets and not args.against:
        raise ValueError("against: expected benchmarks beside --no-secrets, got none")
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
    for benchmark in report["benchmarks"]:
        questions = benchmark["questions"]
        mean = sum(row["fraction"] for row in questions) / max(1, len(questions))
        counts = [f"{n:,}" for n in benchmark["counts"].values()]
        rows.append([benchmark["name"], f"{len(questions):,}", f"{100 * mean:.1f} %", *counts])
    columns = ("benchmark", "questions", "contamination", "clean (<20 %)", "not clean",
               "not dirty", "dirty (≥80 %)")  # fmt: skip
    title = f"Matches of {report['min_length']} tokens or more, at most {report['skips']} differing"
    return _table(title, columns, rows)


def _secrets_table(report: dict[str, Any], shown: int = 5) -> Any:
    rows = []
    for kind, count in report["counts"].items():
        documents = sorted({f["document"] for f in report["findings"] if f["kind"] == kind})
        names = ", ".join(map(str, documents[:shown])) + (", ..." if documents[shown:] else "")
        rows.append([kind, f"{count:,}", f"{len(documents):,}", names])
    if not rows:
        return "No secrets and no e-mail addresses found"
    return _table("Secrets and e-mail addresses", ("kind", "found", "in documents", "which"), rows)
