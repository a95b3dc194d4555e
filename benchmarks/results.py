"""The results of a run of the suite, and their JSON form."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_fast._write import write_whole

from .cases import STEP, Case, percent
from .implementation import OURS

FORMAT = 1


@dataclass
class Side:
    """One implementation on one case.

    Attributes:
        implementation: name of the implementation.
        samples_ms: milliseconds of a step, one number per round.
        repeat: number of steps of which a sample is the mean (above 1 for short steps only).
        first_ms: milliseconds of the first call, including compilation.
        difference: relative root-mean-square difference of its results from ours.
        extra_bytes: peak memory of a step on top of its inputs.
        extra_reason: why `extra_bytes` is unknown.
        reason: why there are no samples.
    """

    implementation: str
    samples_ms: list[float] = field(default_factory=list)
    repeat: int = 1
    first_ms: float | None = None
    difference: float | None = None
    extra_bytes: int | None = None
    extra_reason: str | None = None
    reason: str | None = None

    @property
    def median_ms(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples_ms)

    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the samples."""
        if len(self.samples_ms) < 2:
            return self.median_ms, self.median_ms
        low, _, high = statistics.quantiles(self.samples_ms, n=4, method="inclusive")
        return low, high


@dataclass
class Result:
    """The results of all sides on a case."""

    case: Case
    sides: list[Side]

    @property
    def ours(self) -> Side | None:
        """Our side, or None if it has no samples."""
        return next((s for s in self.measured if s.implementation == OURS), None)

    @property
    def measured(self) -> list[Side]:
        """Sides with samples."""
        return [side for side in self.sides if side.samples_ms]

    @property
    def baselines(self) -> list[Side]:
        """The measured baselines, the fastest first."""
        baselines = [side for side in self.measured if side.implementation != OURS]
        return sorted(baselines, key=lambda side: side.median_ms)

    def ratio(self, side: Side) -> float | None:
        """The time of `side` divided by ours."""
        return side.median_ms / self.ours.median_ms if self.ours else None

    def tokens_per_second(self, side: Side) -> float | None:
        """Tokens per second in a training step; None for an op."""
        if self.case.mode != STEP:
            return None
        return self.case.sizes["B"] * self.case.sizes["S"] / side.median_ms * 1e3

    def as_dict(self, limits: dict[str, float]) -> dict[str, Any]:
        """The result as JSON, with statistics of the samples."""
        kind, amount = self.case.work()
        sides = []
        for side in self.sides:
            row = asdict(side)
            if side.samples_ms:
                low, high = side.quartiles()
                row |= {
                    "median_ms": side.median_ms,
                    "min_ms": min(side.samples_ms),
                    "quartiles_ms": [low, high],
                    "ratio_to_ours": self.ratio(side),
                    "percent_of_limit": percent(self.case, side.median_ms / 1e3, limits),
                    "tokens_per_second": self.tokens_per_second(side),
                }
            sides.append(row)
        case = asdict(self.case) | {"title": self.case.title}
        return {"case": case, "limit": {"kind": kind, "work": amount}, "sides": sides}


@dataclass
class Results:
    """The results of a run.

    Attributes:
        settings: device, rounds, quick, threads, huge_pages, command.
        machine: `llama_fast.info.collect()`.
        limits: "gemm <dtype>" in FLOP/s, "read" and "copy" in bytes/s.
        missing: name of an implementation -> why it is not available.
        implementations: name -> short description.
        results: one per case.
        seconds: duration of the whole run.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    limits: dict[str, float]
    missing: dict[str, str]
    implementations: dict[str, str]
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the results as they are written."""
        return {
            "format": FORMAT,
            "settings": self.settings,
            "machine": self.machine,
            "limits": self.limits,
            "implementations": self.implementations,
            "missing": self.missing,
            "seconds": self.seconds,
            "results": [result.as_dict(self.limits) for result in self.results],
        }

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        write_whole(path, json.dumps(self.as_dict(), indent=1) + "\n")


def read(path: Path) -> Results:
    """Read a file that `Results.write` wrote, to create tables and plots again.

    Raises:
        ValueError: the file has another format.
    """
    whole = json.loads(path.read_text())
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(f"{path}: expected results of llama-fast bench, format {FORMAT}")
    results = []
    for one in whole["results"]:
        title = one["case"].pop("title")
        case = Case(**one["case"])
        assert case.title == title
        names = Side.__dataclass_fields__
        sides = [Side(**{n: x for n, x in row.items() if n in names}) for row in one["sides"]]
        results.append(Result(case, sides))
    rest = ("settings", "machine", "limits", "missing", "implementations", "seconds")
    return Results(**{name: whole[name] for name in rest}, results=results)
