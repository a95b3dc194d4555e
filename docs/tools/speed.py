"""The README's picture and table of speed, from the results in benchmarks/results.

    python docs/tools/speed.py        writes docs/images/speed.svg and the tables in README.md and
                                      docs/performance.md

A ratio is the time of a baseline over that of llama_fast on the same machine in the same run.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from canvas import Drawing

from benchmarks.report import SHORT, milliseconds
from llama_fast._format import times

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "speed.svg"
OURS, TORCH = "llama_fast", "torch"
FAMILIES = {
    "attention": "attention",
    "cross_entropy": "cross_entropy",
    "linear_cross_entropy": "linear_cross_entropy",
    "rms_norm": "rms_norm",
    "rope": "rope",
    "swiglu": "swiglu",
    "llama_training": "training step, Llama 58 M",
}
# Of the picture: op, words in the title, dtype, mode, name.
ROWS = [
    ("attention", "causal, S=2048 D=64 H=8", "bfloat16", "forward+backward", "attention, causal"),
    ("attention", "window 512, S=8192", "bfloat16", "forward+backward", "attention, window 512 of 8,192"),
    ("attention", "8 packed documents", "bfloat16", "forward+backward", "attention, 8 packed documents"),
    ("attention", "decode, B=8", "bfloat16", "forward", "attention, decoding over 4,096 keys"),
    ("cross_entropy", "in place, N=2048", "bfloat16", "forward+backward", "cross_entropy, in place"),
    ("linear_cross_entropy", "N=2048", "float32", "forward+backward", "linear_cross_entropy, float32"),
    ("linear_cross_entropy", "75% ignored", "bfloat16", "forward+backward", "linear_cross_entropy, 75 % ignored"),
    ("rms_norm", "residual", "bfloat16", "forward+backward", "rms_norm with residual"),
    ("rope", "", "float32", "forward+backward", "rope, float32"),
    ("swiglu", "", "bfloat16", "forward+backward", "swiglu"),
    ("llama_training", "", "bfloat16", "training step", "training step, Llama 58 M"),
]  # fmt: skip


def read(name: str) -> dict[str, Any]:
    """A file of results."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Baseline -> its time over ours, the fastest first."""
    sides = {s["implementation"]: s["median_ms"] for s in result["sides"] if s.get("median_ms")}
    ours = sides.pop(OURS)
    return dict(sorted(((name, ms / ours) for name, ms in sides.items()), key=lambda p: p[1]))


def picture() -> str:
    """Bars to the fastest baseline, dots for torch's own functions; a logarithmic axis."""
    results = read("cpu-amd-epyc-zen4.json")["results"]
    d = Drawing(720, 84 + 26 * len(ROWS))
    d.text(
        20,
        22,
        "Speedup over the baselines: their time / llama_fast's (longer is better)",
        kind="bold",
    )
    d.text(
        20,
        40,
        "2 threads of an AMD EPYC (Zen 4), torch 2.13; bfloat16 unless noted",
        kind="soft",
    )
    left, right, most = 262, 640, 32.0

    def x(ratio: float) -> float:
        return left + (right - left) * math.log(ratio) / math.log(most)

    bottom = 58 + 26 * len(ROWS)
    for tick in (1, 2, 4, 8, 16, 32):
        d.line(x(tick), 54, x(tick), bottom, "ink" if tick == 1 else "box")
        d.text(x(tick), bottom + 16, f"{tick}×", "middle", "soft")
    for n, (op, words, dtype, mode, name) in enumerate(ROWS):
        found = [
            r for r in results
            if r["case"]["op"] == op and words in r["case"]["title"]
            and r["case"]["dtype"] == dtype and r["case"]["mode"] == mode
        ]  # fmt: skip
        each = ratios(found[0])
        best = next(iter(each.values()))
        y = 58 + 26 * n
        d.text(left - 8, y + 16, name, "end")
        d.box(x(1), y + 4, max(x(best) - x(1), 2), 16, "a", fill=0.75, radius=2)
        d.text(right + 72, y + 16, times(best), "end", "bold")
        if TORCH in each:
            d.parts.append(
                f'<circle cx="{x(each[TORCH]):g}" cy="{y + 12:g}" r="5" fill="var(--b)"/>'
            )
    d.text(20, bottom + 16, "bar: fastest baseline", kind="soft")
    d.parts.append(f'<circle cx="155" cy="{bottom + 12:g}" r="5" fill="var(--b)"/>')
    d.text(166, bottom + 16, "torch", kind="soft")
    return d.svg()


def table() -> list[str]:
    """Rows of Markdown: what was measured on which processor, and by which command."""
    zen4 = read("cpu-amd-epyc-zen4.json")["results"]
    rows = ["| processor, command | what | against | ratio |", "| --- | --- | --- | --- |"]
    first = "AMD EPYC (Zen 4), 2 threads; `make bench-cpu`"
    for op, name in FAMILIES.items():
        best = sorted(next(iter(ratios(r).values())) for r in zen4 if r["case"]["op"] == op)
        against = "fastest baseline"
        if op == "llama_training":
            against = "`torch.compile`"
        shown = f"{times(best[0])} – {times(best[-1])}"
        if len(best) > 2:
            shown = f"**{times(statistics.median(best))}** ({shown})"
        name = name if " " in name else f"`{name}`"
        rows.append(f"| {first} | {name}, {len(best)} cases | {against} | {shown} |")
        first = ""
    first = "Intel Xeon (AMX), 2 threads; `make bench-train`"
    loops = {
        (dtype, side["side"]): side["median_ms"]
        for dtype, sides in read("train-cpu-intel-xeon.json")["loops"].items()
        for side in sides
    }
    for loop, name in (("litgpt", "litgpt's loop"), ("transformers", "transformers' `Trainer`")):
        shown = ", ".join(
            f"{times(loops[dtype, loop] / loops[dtype, OURS])} {dtype}"
            for dtype in ("bfloat16", "float32")
        )
        rows.append(f"| {first} | training, Llama 58 M | {name} | {shown} |")
        first = ""
    first = "Intel Xeon (AMX), 2 threads; `make bench-eval`"
    for dtype in ("bfloat16", "float32"):
        each = sorted(
            statistics.median(r["theirs"]) / statistics.median(r["ours"])
            for r in read("eval-cpu-intel-xeon.json")["results"]
            if r["dtype"] == dtype
        )
        shown = f"{times(each[0])} – {times(each[-1])}"
        what = f"evaluation, SmolLM2-135M {dtype}, {len(each)} tasks"
        rows.append(f"| {first} | {what} | lm-evaluation-harness `HFLM` | {shown} |")
        first = ""
    return rows


def details(page: str) -> str:
    """The page with the numbers in its table of cases as the results have them.

    The first three columns (op, case and dtype, pass) say which cases are shown.
    """
    results = {_key(result["case"]): result for result in read("cpu-amd-epyc-zen4.json")["results"]}
    lines = page.split("\n")
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        mode = {"step": "training step"}.get(cells[2], cells[2]) if len(cells) == 7 else ""
        op = {"training": "llama_training"}.get(cells[0], cells[0])
        if mode in ("forward", "forward+backward", "training step"):
            lines[number] = _row(cells, results[op, cells[1], mode])
    return "\n".join(lines)


def _key(case: dict[str, Any]) -> tuple[str, str, str]:
    title, sizes = case["title"], case["sizes"]
    if case["op"] == "llama_training":  # which has too many sizes to show
        title = f"{case['variant']}, B={sizes['B']} S={sizes['S']}"
    return case["op"], f"{title} {SHORT[case['dtype']]}", case["mode"]


def _row(cells: list[str], result: dict[str, Any]) -> str:
    sides = {side["implementation"]: side for side in result["sides"] if side.get("median_ms")}
    ours = sides[OURS]
    share = ours["percent_of_limit"]
    each = [
        f"{name} {milliseconds(sides[name]['median_ms'])} (**{times(ratio)}**)"
        for name, ratio in ratios(result).items()
    ]
    numbers = [milliseconds(ours["median_ms"]), "–" if share is None else f"{share:.0f} %"]
    return f"| {' | '.join([*cells[:3], *numbers, each[0], ', '.join(each[1:])])} |"


def main() -> None:
    """Draw, and write the tables."""
    PICTURE.write_text(picture())
    page = PAGE.read_text()
    PAGE.write_text(details(page))
    readme = (ROOT / "README.md").read_text()
    rows = [row for row in readme.split("\n") if row.startswith(("| processor", "|  | eval"))]
    first, last = rows[0], rows[-1]
    old = readme[readme.index(first) : readme.index(last) + len(last)]
    (ROOT / "README.md").write_text(readme.replace(old, "\n".join(table())))


if __name__ == "__main__":
    main()
