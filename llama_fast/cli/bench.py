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
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_json, add_out, print_json, tables

# torch reads it only once, at its first large allocation, so it must be set before torch starts.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_PACKAGE = "llama_fast.benchmarks"


def suite(module: str) -> ModuleType:
    """Return a module of the benchmark suite, which is installed as a part of the package.

    In a checkout that is not installed, the suite is in a folder next to the package.
    """
    find_beside("benchmarks")
    return importlib.import_module(f"{_PACKAGE}.{module}")


class Bench(Command):
    """Measures the ops."""

    name = "bench"
    help = "measure every op, its baselines, and the limits of the machine"
    extra = "bench"
    packages = ("matplotlib", "rich")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add = parser.add_argument
        add(
            "--op",
            action="append",
            default=[],
            metavar="NAME",
            help="only these ops (a,b or repeated)",
        )
        add(
            "--case",
            default="",
            metavar="WORDS",
            help="only cases whose name contains all these words",
        )
        add(
            "--baselines",
            action="append",
            default=[],
            metavar="NAME",
            help="only these baselines (a,b or repeated)",
        )
        add(
            "--device",
            choices=("cpu", "cuda"),
            default="cpu",
            help="cpu or cuda (default: %(default)s)",
        )
        add(
            "--rounds",
            type=int,
            metavar="N",
            help="samples of each implementation (default: 9, with --quick 3)",
        )
        add_out(
            parser,
            "folder for JSON, markdown and plots (default: %(default)s)",
            default=Path("bench-results"),
        )
        add(
            "--quick",
            action="store_true",
            help="small sizes, to check that everything runs; the times are not meaningful",
        )
        add(
            "--huge-pages",
            choices=("on", "off"),
            default="on",
            help=f"huge pages for torch's allocator, for all implementations ({HUGE_PAGES}; "
            "default: on)",
        )
        add(
            "--memory",
            choices=("on", "off"),
            default="on",
            help="measure peak memory (default: on)",
        )
        add(
            "--from",
            dest="earlier",
            type=Path,
            metavar="JSON",
            help="do not measure; write table, markdown and plots from the JSON of an earlier run",
        )
        add("--list", action="store_true", help="do not measure; list cases and implementations")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Run the suite.

        Returns:
            OK; NEGATIVE if llama_fast failed in a case.

        Raises:
            ValueError: an op, case or baseline is unknown, there is no GPU for "cuda", or --rounds
                is below 1.
        """
        with tables(args):
            code, content = _run(args)
        if args.json:
            print_json(content)
        return code


def _run(args: argparse.Namespace) -> tuple[ExitCode, dict[str, Any]]:
    """Return the exit code, and the results or the list as JSON has them."""
    if args.earlier is not None:
        results = suite("results").read(args.earlier)
        args.out.mkdir(parents=True, exist_ok=True)
        _write(results, args.out / args.earlier.name, _screen())
        return ExitCode.OK, results.as_dict()
    import torch

    if args.rounds is not None and args.rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected cpu, as torch finds no GPU here; got cuda")
    # torch.compile's own processes would start up while something is timed.
    os.environ[COMPILE_THREADS] = "1"
    chosen = suite("cases").cases(args.device, _names(args.op), args.case, args.quick)
    present, missing = suite("baselines").choose(_names(args.baselines), args.device)
    if args.list:
        return ExitCode.OK, _list(chosen, present, missing)
    _restart_with_huge_pages(args.huge_pages == "on")
    args.out.mkdir(parents=True, exist_ok=True)  # fail now rather than after minutes of work
    settings = suite("suite").Settings(
        command=shlex.join(["llama-fast", *sys.argv[1:]]),
        device=args.device,
        rounds=args.rounds or (3 if args.quick else 9),
        quick=args.quick,
        huge_pages=os.environ.get(HUGE_PAGES) == "1",
        memory=args.memory == "on",
    )
    job = suite("suite").Suite(settings, chosen, present, missing)
    return _measure(job, args.out), job.results.as_dict()


def _names(given: list[str]) -> list[str]:
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def _restart_with_huge_pages(wanted: bool) -> None:
    """Restart this process with the environment variable that torch reads when it starts."""
    value = str(int(wanted))
    # A process that merely calls main() is not restarted.
    is_command = sys.argv[1:2] == ["bench"]
    if is_command and os.environ.get(HUGE_PAGES, "0") != value:
        os.environ[HUGE_PAGES] = value
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _list(chosen: list[Any], present: list[Any], missing: dict[str, str]) -> dict[str, Any]:
    """Print cases and implementations; return them as JSON has them."""
    print("cases")
    for case in chosen:
        print(f"  {case.name}\n      {case.reason}")
    print("implementations")
    for implementation in present:
        print(f"  {implementation.name:<24}{implementation.what}")
    for name, reason in missing.items():
        print(f"  {name:<24}missing: {reason}")
    return {
        "cases": [{"name": case.name, "reason": case.reason} for case in chosen],
        "implementations": {each.name: each.what for each in present},
        "missing": missing,
    }


def _screen() -> Any:
    from llama_fast._screen import Screen

    return Screen()


def _measure(job: Any, out: Path) -> ExitCode:
    """Run the suite, print a line for each case, and write the files even when interrupted."""
    from rich.markup import escape

    report = suite("report")
    screen = _screen()
    results = job.results
    path = out / f"{report.machine_slug(results.settings['device'])}.json"

    # The bar needs the rest of the line.
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
    worked = all(result.ours for result in results.results)
    return ExitCode.OK if worked else ExitCode.NEGATIVE


def _write(results: Any, path: Path, screen: Any) -> None:
    """Print the tables; write JSON, markdown and plots."""
    from rich.markup import escape

    from llama_fast._write import write_whole

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


COMMAND = Bench()

if __name__ == "__main__":
    suite(sys.argv[1]).serve(json.loads(sys.argv[2]))
