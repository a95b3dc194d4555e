"""The history of the benchmark suite: a line of JSON for each run, and a picture of them all.

    llama-fast bench --out build/bench
    python -m benchmarks.history build/bench/cpu-….json --history build/history

`make bench-history` does both. A point of the picture is a baseline's time divided by ours, as a
geometric mean over an op's cases. Both sides alternate in one process, so their ratio, unlike the
times, depends little on the load of the machine. It does depend on the processor: each has its own
line. Runs are compared over the cases that all of them have.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llama_fast._plot_style import GREY, INK, style_axes
from llama_fast._write import save_picture, write_whole

from .plots import COLOUR, OP_NAME
from .results import Results, read

FORMAT = 1
RUNS, PICTURE = "history.jsonl", "history.png"
LINES: tuple[Any, ...] = ("-", "--", ":", "-.")  # a style for each processor
# A ratio is slower if it is below this share of the median of the runs before, at most and at least
# so many.
SLOWER, MOST_RUNS, LEAST_RUNS = 0.8, 10, 3


@dataclass
class Run:
    """One run of the suite.

    Attributes:
        commit: the commit that was measured; "-dirty" is appended if files had changed.
        date: when, in UTC, as ISO 8601.
        processor: CPU or GPU, as in the name of the results' file, and the number of threads.
        versions: package -> version.
        quick: whether the sizes are those of `--quick`.
        ops: name of a case -> name of its op.
        ours_ms: name of a case -> our median time.
        ratios: name of a case -> baseline -> its median time divided by ours.
    """

    commit: str
    date: str
    processor: str
    versions: dict[str, str]
    quick: bool
    ops: dict[str, str]
    ours_ms: dict[str, float]
    ratios: dict[str, dict[str, float]]

    @property
    def group(self) -> tuple[str, bool]:
        """What runs have in common that can be compared."""
        return self.processor, self.quick


def run_of(results: Results, processor: str, commit: str, date: str) -> Run:
    """Return what the history keeps of the results of a run.

    Args:
        results: the results.
        processor: a name of the machine, `report.machine_slug`.
        commit: the commit that was measured.
        date: when, in UTC, as ISO 8601.

    Raises:
        ValueError: our side was measured in no case.
    """
    measured = [result for result in results.results if result.ours is not None]
    if not measured:
        raise ValueError("the results contain no case in which llama_fast was measured")
    ratios = {
        r.case.name: {s.implementation: r.ratio(s) or 1.0 for s in r.baselines} for r in measured
    }
    return Run(
        commit=commit,
        date=date,
        processor=f"{processor}, {results.settings['threads']} threads",
        versions=results.machine["versions"],
        quick=results.settings["quick"],
        ops={r.case.name: r.case.op for r in measured},
        ours_ms={r.case.name: r.ours.median_ms for r in measured if r.ours},
        ratios=ratios,
    )


def load(path: Path) -> list[Run]:
    """Return the runs of a history, the oldest first; none if the file does not exist.

    Raises:
        ValueError: a line is not one that `append` wrote.
    """
    if not path.exists():
        return []
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            whole = json.loads(line)
            if whole.pop("format") != FORMAT:
                raise ValueError(f"another format than {FORMAT}")
            runs.append(Run(**whole))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a run of the suite: {error}"
            ) from error
    return sorted(runs, key=lambda run: run.date)


def append(path: Path, run: Run) -> list[Run]:
    """Add a run to a history and return all its runs, the oldest first.

    A run of the same commit on the same processor is replaced, so that a repeated job adds nothing.
    """
    kept = [r for r in load(path) if (r.commit, r.group) != (run.commit, run.group)]
    runs = sorted([*kept, run], key=lambda one: one.date)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({"format": FORMAT} | asdict(r)) + "\n" for r in runs))
    return runs


def means(runs: list[Run], op: str, baseline: str) -> list[tuple[Run, float]]:
    """Return the geometric means of a baseline's ratios over the cases of an op.

    Args:
        runs: runs of one group, the oldest first.
        op: name of the op.
        baseline: name of the baseline.

    Returns:
        A mean for each run that shares cases with the latest one; all over the same cases.
    """
    cases = [
        (run, {c for c, r in run.ratios.items() if run.ops[c] == op and baseline in r})
        for run in runs
    ]
    cases = [(run, names) for run, names in cases if names]
    if not cases:
        return []
    common = cases[-1][1]
    cases = [(run, names) for run, names in cases if names & common]
    for _, names in cases:
        if names & common:
            common = common & names
    return [
        (run, math.exp(statistics.mean(math.log(run.ratios[c][baseline]) for c in sorted(common))))
        for run, names in cases
        if common <= names
    ]


def slower(runs: list[Run], latest: Run) -> list[str]:
    """Return a line for each ratio of `latest` that is much below the median of the runs before."""
    earlier = [r for r in runs if r.group == latest.group and r.date < latest.date][-MOST_RUNS:]
    lines = []
    for case, ratios in latest.ratios.items():
        for baseline, now in ratios.items():
            before = [
                r.ratios[case][baseline] for r in earlier if baseline in r.ratios.get(case, {})
            ]
            if len(before) >= LEAST_RUNS and now < SLOWER * statistics.median(before):
                lines.append(
                    f"{case}: {baseline} / llama_fast fell from {statistics.median(before):.2f} "
                    f"(median of {len(before)}) to {now:.2f}"
                )
    return lines


def draw(runs: list[Run], path: Path) -> None:
    """Draw a panel for each op: each baseline's mean ratio over time, a line for each processor."""
    ops = list(dict.fromkeys(op for run in runs for op in run.ops.values()))
    groups = list(dict.fromkeys(run.group for run in runs))
    columns = min(2, len(ops))
    rows = math.ceil(len(ops) / columns)
    figure = Figure(figsize=(5.6 * columns, 1.4 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    shown: dict[str, None] = {}
    for panel, op in zip(panels, ops, strict=False):
        panel.set_title(OP_NAME.get(op, op), loc="left", color=INK, weight="bold", size=10)
        for baseline in _baselines(runs):
            for group, style in zip(groups, LINES * len(groups), strict=False):
                points = means([run for run in runs if run.group == group], op, baseline)
                if points:
                    shown[baseline] = None
                    dates = [datetime.fromisoformat(run.date) for run, _ in points]
                    colour = COLOUR.get(baseline, GREY)
                    panel.plot(
                        dates, [ratio for _, ratio in points], style, color=colour, marker="o",
                        markersize=4, linewidth=1.3,
                    )  # fmt: skip
        panel.axhline(1, color=INK, linewidth=1)
        panel.set_yscale("log")
        _ticks(panel)
        style_axes(panel)
        panel.tick_params(labelsize=8, labelbottom=True)
        days = AutoDateLocator(minticks=2, maxticks=6)
        panel.xaxis.set_major_locator(days)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(days))
    for panel in panels[len(ops) :]:
        panel.remove()
    handles = [Line2D([], [], marker="o", color=COLOUR.get(n, GREY), label=n) for n in shown]
    handles += [
        Line2D([], [], linestyle=style, color=INK, label=cpu + (", small sizes" if quick else ""))
        for (cpu, quick), style in zip(groups, LINES * len(groups), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(
        "Time of the baselines, in multiples of llama_fast's (higher is better)\n"
        "geometric mean over the op's cases",
        color=INK, weight="bold", size=11,
    )  # fmt: skip
    save_picture(figure, path)


def _baselines(runs: Iterable[Run]) -> list[str]:
    names = dict.fromkeys(n for run in runs for ratios in run.ratios.values() for n in ratios)
    return sorted(names, key=lambda n: list(COLOUR).index(n) if n in COLOUR else len(COLOUR))


def _ticks(panel: Any) -> None:
    """Put ticks at 1, 2 and 5 times powers of ten, written as factors."""
    low, high = panel.get_ylim()
    low, high = min(low, 0.9), max(high, 1.2)
    places = [s * 10.0**d for d in range(-3, 5) for s in (1, 1.5, 2, 3, 5)]
    panel.set_yticks([p for p in places if low <= p <= high])
    panel.set_yticks([], minor=True)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    panel.set_ylim(low, high)


def _commit() -> str:
    """The commit of the working tree that this module lies in."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"--commit: expected, as git knows no commit here: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Add the results of a run to a history, draw it, and say what became slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON of llama-fast bench")
    parser.add_argument(
        "--history", type=Path, required=True, metavar="DIR", help=f"folder of {RUNS} and {PICTURE}"
    )
    parser.add_argument("--commit", help="the commit that was measured (default: git's)")
    parser.add_argument("--date", help="when, as ISO 8601 with a time zone (default: now)")
    args = parser.parse_args(arguments)
    try:
        now = datetime.now(timezone.utc)
        date = datetime.fromisoformat(args.date) if args.date else now
        if date.tzinfo is None:
            raise ValueError(
                f"--date: expected a time zone, as in 2026-11-30+00:00; got {args.date}"
            )
        text = date.astimezone(timezone.utc).isoformat(timespec="seconds")
        run = run_of(read(args.results), args.results.stem, args.commit or _commit(), text)
        runs = append(args.history / RUNS, run)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    draw(runs, args.history / PICTURE)
    print(f"{args.history / RUNS}: {len(runs)} runs; {args.history / PICTURE}")
    for line in slower(runs, run):
        print(f"slower: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
