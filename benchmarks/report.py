"""Formats results as tables for a terminal and in Markdown; file names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from llama_fast import info
from llama_fast._format import times

from .cases import FORWARD, percent
from .implementation import OURS
from .results import Result, Results, Side

SHORT = {"float32": "fp32", "bfloat16": "bf16"}
PASS = {"forward": "fwd", "forward+backward": "fwd+bwd", "training step": "step"}
# Half of bfloat16's digits: sides that differ by more do not compute the same.
DISAGREE = 0.06


def machine_slug(device: str) -> str:
    """A name of this machine for file names: "cpu-amd-epyc-zen4", "cuda-nvidia-h200"."""
    if device == "cuda":
        import torch

        return "cuda-" + _slug(torch.cuda.get_device_name())
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor|with .*)\b|@.*|\d+-Core", " ", info.cpu_model())
    return "cpu-" + _slug(f"{name} {_amd_generation()}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _amd_generation() -> str:
    """The microarchitecture of an AMD processor, which virtual machines may call just "EPYC"."""
    facts = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    except OSError:
        return ""
    if facts.get("vendor_id") != "AuthenticAMD":
        return ""
    family, model = int(facts.get("cpu family", 0)), int(facts.get("model", 0))
    if family == 0x19:  # Zen 3 and 4 share a family
        return "zen4" if 0x10 <= model <= 0x1F or model >= 0x60 else "zen3"
    return {0x17: "zen2" if model >= 0x30 else "zen", 0x1A: "zen5"}.get(family, "")


def milliseconds(ms: float) -> str:
    """A time with three significant digits."""
    if ms < 1:
        return f"{1e3 * ms:.0f} µs" if ms >= 0.1 else f"{1e3 * ms:.1f} µs"
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms" if ms < 1e3 else f"{ms / 1e3:.2f} s"


def size(bytes_: int | None) -> str:
    """A size in kB, MB or GB."""
    if bytes_ is None:
        return "–"
    if bytes_ < 1e6:
        return f"{bytes_ / 1e3:.0f} kB"
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"


def share(results: Results, result: Result, side: Side) -> str:
    """The share of the machine's limit, in percent."""
    value = percent(result.case, side.median_ms / 1e3, results.limits)
    return "–" if value is None else f"{value:.0f} %" if value >= 1 else "<1 %"


def summary(results: Results, result: Result) -> str:
    """Our time and the fastest baseline's in a case, as a line with rich markup."""
    ours, baselines = result.ours, result.baselines
    if ours is None:
        return "[bold red]not measured[/]"
    text = f"[green]{milliseconds(ours.median_ms)}[/], {share(results, result, ours)} of limit"
    if baselines:
        text += f", [bold]{times(result.ratio(baselines[0]))}[/] {baselines[0].implementation}"
    return text


def header(results: Results) -> list[str]:
    """Lines of text on the machine, its limits and the settings of the run."""
    machine, s, limits = results.machine, results.settings, results.limits
    cpu = machine["cpu"]
    where = (
        machine["gpu"][0] if s["device"] == "cuda" else f"{cpu['model']}, {s['threads']} threads"
    )
    pages = "on" if s["huge_pages"] else "off"
    lines = [
        f"{where}, {cpu['instruction_set']}, torch {machine['versions']['torch']}, "
        f"llama_fast {machine['versions']['llama_fast']}",
        f"median of {s['rounds']} rounds, run alternately; huge pages for torch's allocator "
        f"{pages} (THP_MEM_ALLOC_ENABLE={int(s['huge_pages'])})",
        "limits measured here: "
        + ", ".join(
            f"{name} {rate / 1e9:,.1f} {'GFLOP/s' if name.startswith('gemm') else 'GB/s'}"
            for name, rate in limits.items()
        ),
    ]
    if s["quick"]:
        lines.append("quick: small sizes and few rounds; the times are not meaningful")
    return lines


def notes(results: Results) -> list[str]:
    """Lines of text on missing implementations and sides that failed or disagreed."""
    lines = [f"{name} is missing: {why}" for name, why in results.missing.items()]
    failed: dict[tuple[str, str], list[str]] = {}
    for result in results.results:
        for side in result.sides:
            if side.reason:
                failed.setdefault((side.implementation, side.reason), []).append(result.case.name)
            if side.samples_ms and len(side.samples_ms) < results.settings["rounds"]:
                lines.append(
                    f"{side.implementation} has {len(side.samples_ms)} rounds on "
                    f"{result.case.name}: over twice as slow as the fastest baseline"
                )
            if side.difference is not None and not side.difference < DISAGREE:
                lines.append(
                    f"{side.implementation} differs from {OURS} by {side.difference:.2g} "
                    f"(relative) on {result.case.name}"
                )
    for (implementation, reason), names in failed.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{implementation} not measured on {names[0]}{more}: {reason}")
    reasons = {side.extra_reason for r in results.results for side in r.sides if side.extra_reason}
    lines += [f"memory not measured: {reason}" for reason in sorted(reasons)]
    return lines


def tables(results: Results) -> Iterator[Table]:
    """Tables for a terminal: one per op, with one row per side."""
    for op in dict.fromkeys(result.case.op for result in results.results):
        training = op == "llama_training"
        table = Table(box=box.SIMPLE_HEAD, title=op, title_justify="left", title_style="bold cyan")
        table.add_column("case", max_width=34)
        table.add_column("")
        table.add_column("side", no_wrap=True)
        for name in ("median", "ratio", "of limit", "tokens/s" if training else None, "memory"):
            if name:
                table.add_column(name, justify="right", no_wrap=True)
        for result in results.results:
            if result.case.op == op:
                _rows(table, results, result)
        yield table


def _rows(table: Table, results: Results, result: Result) -> None:
    case = result.case
    first = (case.title, f"{SHORT[case.dtype]} {PASS[case.mode]}")
    sides = [side for side in (result.ours, *result.baselines) if side]
    for side in sides or [Side("not measured")]:
        cells: list[Any] = ["–"] * (5 if len(table.columns) == 8 else 4)
        if side.samples_ms:
            rate = result.tokens_per_second(side)
            cells = [
                milliseconds(side.median_ms),
                "" if side.implementation == OURS else times(result.ratio(side)),
                share(results, result, side),
                *([f"{rate:,.0f}"] if rate else []),
                "" if case.mode == FORWARD else size(side.extra_bytes),
            ]
        fastest = result.baselines and side is result.baselines[0]
        style = "green" if side.implementation == OURS else "bold" if fastest else "dim"
        table.add_row(
            *first, side.implementation, *cells, style=style, end_section=side is sides[-1]
        )
        first = ("", "")


def markdown(results: Results) -> str:
    """The whole report as a Markdown page."""
    device = results.settings["device"]
    lines = [
        f"# Benchmarks on {device.upper()}",
        "",
        *(f"{line}  " for line in header(results)),
        "",
    ]
    lines += [f"`{results.settings['command']}`, {results.seconds:.0f} s.", ""]
    columns = "op | case | dtype, pass | llama_fast | of limit | memory"
    lines += [
        f"| {columns} | baselines: time (ratio to llama_fast) memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results.results:
        case, ours = result.case, result.ours
        baselines = ", ".join(
            f"{side.implementation} {milliseconds(side.median_ms)} "
            f"(**{times(result.ratio(side))}**)"
            + (f" {size(side.extra_bytes)}" if side.extra_bytes is not None else "")
            for side in result.baselines
        )
        row = [case.op, case.title, f"{SHORT[case.dtype]} {PASS[case.mode]}"]
        if ours:
            rate = result.tokens_per_second(ours)
            shown = milliseconds(ours.median_ms) + (f", {rate:,.0f} tokens/s" if rate else "")
            row += [shown, share(results, result, ours), size(ours.extra_bytes)]
        else:
            row += ["–", "–", "–"]
        lines.append(f"| {' | '.join([*row, baselines or '–'])} |")
    lines += ["", *(f"- {line}" for line in notes(results)), ""]
    return "\n".join(lines)
