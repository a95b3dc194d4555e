"""`llama-fast bench`: the benchmark suite, its table, its plots, and JSON.

`python -m llama_fast.cli.bench ROLE SETTINGS` is a process that the suite starts for itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from llama_fast._beside import find_beside
from llama_fast._write import write_whole

HELP = "measure every op beside its baselines and the machine's own limits"

# Read by torch once, at its first large allocation: it has to be there before torch starts.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_PACKAGE = "llama_fast.benchmarks"


def suite(module: str) -> ModuleType:
    """A module of the benchmark suite, which is installed with the package as a part of it.

    In a checkout that is not installed, it lies in a folder beside the package.
    """
    find_beside("benchmarks")
    return importlib.import_module(f"{_PACKAGE}.{module}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--op", action="append", default=[], metavar="NAME", help="only these ops (a,b or repeated)"
    )
    parser.add_argument(
        "--case", default="", metavar="WORDS", help="only cases whose name has all these words"
    )
    parser.add_argument(
        "--baselines", action="append", default=[], metavar="NAME", help="only these baselines"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="samples of each side (default 9; quick: 3)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("bench-results"),
        metavar="DIR",
        help="folder for JSON, markdown and plots (default: bench-results)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: does it run? says nothing about speed"
    )
    parser.add_argument(
        "--huge-pages",
        choices=("on", "off"),
        default="on",
        help=f"for torch's allocator, on every side ({HUGE_PAGES}; default: on)",
    )
    parser.add_argument(
        "--memory", choices=("on", "off"), default="on", help="measure peak memory (default: on)"
    )
    parser.add_argument(
        "--from",
        dest="earlier",
        type=Path,
        metavar="JSON",
        help="measure nothing: table, markdown and plots again from an earlier run's file",
    )
    parser.add_argument(
        "--list", action="store_true", help="list cases and implementations, and measure nothing"
    )


def _names(given: list[str]) -> list[str]:
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def run(args: argparse.Namespace) -> int:
    """Run the suite.

    Returns:
        0; 1 if a case of ours failed.

    Raises:
        ValueError: an unknown op, case or implementation; "cuda" without a GPU; rounds below 1.
    """
    try:
        for package in ("matplotlib", "rich"):
            importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{error}; bench needs: pip install 'llama_fast[bench]'") from error
    if args.earlier is not None:
        results = suite("results").read(args.earlier)
        args.out.mkdir(parents=True, exist_ok=True)
        _write(results, args.out / args.earlier.name, _screen())
        return 0
    import torch

    if args.rounds is not None and args.rounds < 1:
        raise ValueError(f"--rounds: expected a number >= 1, got {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected cpu, as torch finds no GPU here; got cuda")
    # torch.compile's own processes would start up while something is timed.
    os.environ[COMPILE_THREADS] = "1"
    chosen = suite("cases").cases(args.device, _names(args.op), args.case, args.quick)
    present, missing = suite("baselines").choose(_names(args.baselines), args.device)
    if args.list:
        _list(chosen, present, missing)
        return 0
    _restart_with_huge_pages(args.huge_pages == "on")
    args.out.mkdir(parents=True, exist_ok=True)  # now, rather than fail after minutes of work
    settings = suite("suite").Settings(
        command=shlex.join(["llama-fast", *sys.argv[1:]]),
        device=args.device,
        rounds=args.rounds or (3 if args.quick else 9),
        quick=args.quick,
        huge_pages=os.environ.get(HUGE_PAGES) == "1",
        memory=args.memory == "on",
    )
    return _measure(suite("suite").Suite(settings, chosen, present, missing), args.out)


def _restart_with_huge_pages(wanted: bool) -> None:
    """Starts this command again with the environment that torch has to find when it starts."""
    value = str(int(wanted))
    # A caller of main() in a longer-lived process keeps the environment that it has.
    is_command = sys.argv[1:2] == ["bench"]
    if is_command and os.environ.get(HUGE_PAGES, "0") != value:
        os.environ[HUGE_PAGES] = value
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _list(chosen: list[Any], present: list[Any], missing: dict[str, str]) -> None:
    print("cases")
    for case in chosen:
        print(f"  {case.name}\n      {case.reason}")
    print("implementations")
    for implementation in present:
        print(f"  {implementation.name:<24}{implementation.what}")
    for name, reason in missing.items():
        print(f"  {name:<24}missing: {reason}")


def _screen() -> Any:
    from llama_fast._screen import Screen

    return Screen()


def _measure(job: Any, out: Path) -> int:
    """Runs the suite, with a line for each case; writes the files even when interrupted."""
    from rich.markup import escape

    report = suite("report")
    screen = _screen()
    results = job.results
    path = out / f"{report.machine_slug(results.settings['device'])}.json"

    # The rest of the line belongs to the bar, which a longer text would squeeze.
    room = max(8, screen.console.width - 75)

    def done(result: Any) -> None:
        screen.line(f"{escape(result.case.name)}: {report.summary(results, result)}")
        results.write(path)

    try:
        with screen.bar("measuring", "rounds") as bar:
            job.run(lambda at, total, what: bar(at, total, what[-room:]), done)
    finally:
        if results.results:
            _write(results, path, screen)
    return 0 if all(result.ours for result in results.results) else 1


def _write(results: Any, path: Path, screen: Any) -> None:
    """Shows the tables; writes JSON, markdown and plots."""
    from rich.markup import escape

    report, plots = suite("report"), suite("plots")
    screen.console.print()
    for table in report.tables(results):
        screen.console.print(table)
    for line in (*report.header(results), *report.notes(results)):
        screen.line(escape(line))
    results.write(path)
    write_whole(path.with_suffix(".md"), report.markdown(results))
    for picture in plots.draw_all(results, path.with_suffix("")):
        screen.line(escape(str(picture)))
    screen.line(f"{escape(str(path))} and .md; {results.seconds:.0f} s")


if __name__ == "__main__":
    suite(sys.argv[1]).serve(json.loads(sys.argv[2]))
