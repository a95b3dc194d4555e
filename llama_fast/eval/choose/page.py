"""The choice of benchmarks as one HTML page, without scripts and without network access."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_fast._format import duration, fixed
from llama_fast._write import write_whole
from llama_fast.eval.choose.cards import Card, paper_scores
from llama_fast.eval.choose.cost import costs
from llama_fast.eval.choose.power import questions_needed, smallest_difference
from llama_fast.eval.choose.purposes import PURPOSES
from llama_fast.eval.choose.redundancy import choose_few, held_out_errors, rank_correlations

__all__ = ["write_choice"]

CURVE = 10  # benchmarks of the curve
_CELL = 26  # pixels of a cell of the heat map

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb;
  --page: #ffffff; --ours: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151;
  --page: #111827; --ours: #2dd4bf; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1200px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.soft, td.soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th.left, td.left { text-align: left; white-space: normal; min-width: 9rem; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); }
details { border-bottom: 1px solid var(--line); padding: 6px 0; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 6px 0; }
dt { color: var(--soft); } dd { margin: 0; }
"""


def write_choice(
    path: str | os.PathLike[str],
    cards: Sequence[Card],
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    difference: float,
    dirty: Mapping[str, float] | None = None,
) -> Path:
    """Write the page.

    Args:
        path: the file; its folder is created if missing.
        cards: the benchmarks.
        scores, seconds, difference: see :func:`llama_fast.eval.choose.table.power_table`.
        dirty: benchmark -> share of its questions in the training data, where it is known.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = "the score" if scores else "the best of the paper"
    body = [
        "<h1>Which benchmarks?</h1>",
        "<p>What the benchmarks of the Llama 2 paper measure, what a run of them can tell, which "
        "few predict the mean of all, and which to run for a purpose.</p>",
        "<h2>What a run can tell</h2>",
        f"<p class=soft>Two models of one kind on the same questions: the smallest difference that "
        f"is found in 4 of 5 comparisons with all questions, and the questions needed for "
        f"{difference:g} points. Room: from {begin} to the human level, or to 100.</p>",
        _numbers(cards, scores, seconds, difference),
        "<h2>Which few predict the mean of all</h2>",
        f"<p class=soft>{html.escape(paper_scores().source)}. Each of the twelve models is "
        "predicted from the others by ridge regression; the upper line also chooses the benchmarks "
        "without it.</p>",
        _curve(),
        "<h2>How alike they rank models</h2>",
        "<p class=soft>Spearman's rank correlation over the twelve models. Dark: the second "
        "benchmark adds little to the first.</p>",
        _heat_map(),
        "<h2>For a purpose</h2>",
        *(_purpose(name) for name in PURPOSES),
        "<h2>The benchmarks</h2>",
        *(_card(card, (dirty or {}).get(card.name)) for card in cards),
    ]
    whole = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "style-src 'unsafe-inline'\"><title>Which benchmarks?</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    write_whole(path, whole)
    return path


def _numbers(
    cards: Sequence[Card],
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    difference: float,
) -> str:
    heads = ["questions", "chance", "human", "paper's best", *(["score"] if scores else [])]
    heads += ["room", "smallest difference", f"n for {difference:g} points"]
    heads += ["s a question", "all", f"minutes for {difference:g}"] if seconds else []
    rows = [f"<tr><th class=left>benchmark</th>{''.join(f'<th>{h}</th>' for h in heads)}</tr>"]
    for card in cards:
        score = scores.get(card.name)
        expected = (card.best if score is None else score) / 100
        needed = questions_needed(difference / 100, expected)
        cells = [
            f"{card.questions:,}",
            fixed(card.chance, 1),
            "–" if card.human is None else fixed(card.human, 1),
            fixed(card.best, 1),
            *(["–" if score is None else fixed(score, 1)] if scores else []),
            fixed(card.headroom(score), 1),
            fixed(100 * smallest_difference(card.questions, expected), 1),
            f"{needed:,}",
        ]
        if seconds:
            each = seconds.get(card.name)
            if each is None:
                cells += ["–"] * 3
            else:
                minutes = needed * each / 60
                cells += [f"{each:.2g}", duration(each * card.questions), f"{minutes:.2g}"]
        data = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td class=left>{html.escape(card.name)}</td>{data}</tr>")
    return f"<div class=wide><table>{''.join(rows)}</table></div>"


def _heat_map() -> str:
    names, matrix = paper_scores().benchmarks, rank_correlations()
    left, top, size = 120, 110, _CELL * len(names)
    parts = [
        f"<div class=wide><svg role=img aria-label='rank correlations' width={left + size + 60} "
        f"height={top + size + 8}>"
    ]
    for row, name in enumerate(names):
        y = top + _CELL * row
        parts.append(f"<text x={left - 6} y={y + 17} text-anchor=end>{html.escape(name)}</text>")
        x = left + _CELL * row + 16
        parts.append(
            f"<text transform='translate({x},{top - 6}) rotate(-60)'>{html.escape(name)}</text>"
        )
        for column in range(len(names)):
            value = float(matrix[row, column])
            shade = max(0.0, (value - 0.3) / 0.7)
            parts.append(
                f"<rect x={left + _CELL * column} y={y} width={_CELL - 1} height={_CELL - 1} "
                f"fill='#0f766e' fill-opacity='{0.06 + 0.84 * shade:.2f}'>"
                f"<title>{html.escape(name)}, {html.escape(names[column])}: {value:.2f}</title>"
                "</rect>"
            )
            text = f"{value:.2f}".removeprefix("0")
            style = "style='fill:#fff'" if shade > 0.55 else ""
            parts.append(
                f"<text x={left + _CELL * column + 12} y={y + 16} text-anchor=middle {style} "
                f"font-size=9>{text if row != column else ''}</text>"
            )
    return "".join([*parts, "</svg></div>"])


def _curve() -> str:
    steps, honest = choose_few(CURVE), held_out_errors(CURVE)
    errors = [step.error for step in steps]
    width, height, left, top = 720, 240, 40, 12
    most = max(*honest, *errors) * 1.1

    def x(number: int) -> float:
        return left + 20 + (width - left - 60) * number / (CURVE - 1)

    def y(value: float) -> float:
        return top + (height - top - 24) * (1 - value / most)

    parts = [
        f"<div class=wide><svg role=img aria-label='error over the number of benchmarks' "
        f"width={width + 60} height={height + 90}>"
    ]
    for tick in range(int(most) + 1):
        parts.append(
            f"<line class=axis x1={left} x2={width} y1={y(tick):.1f} y2={y(tick):.1f} />"
            f"<text x={left - 6} y={y(tick) + 4:.1f} text-anchor=end>{tick}</text>"
        )
    for values, dash in ((errors, "none"), (honest, "5 4")):
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in enumerate(values))
        parts.append(
            f"<polyline points='{points}' fill=none stroke='var(--ours)' stroke-width=2 "
            f"stroke-dasharray='{dash}' />"
        )
        parts += [
            f"<circle cx={x(n):.1f} cy={y(v):.1f} r=3.5 fill='var(--ours)'>"
            f"<title>{v:.2f} points</title></circle>"
            for n, v in enumerate(values)
        ]
    for number, step in enumerate(steps):
        name = ("+ " if number else "") + step.benchmarks[-1]
        parts.append(
            f"<text transform='translate({x(number):.1f},{height}) rotate(35)'>"
            f"{html.escape(name)}</text>"
        )
    for values, label, shift in (
        (honest, "chosen without the model", -8),
        (errors, "chosen with all", 16),
    ):
        at = f"x={width - 4} y={y(values[-1]) + shift:.1f}"
        parts.append(f"<text {at} text-anchor=end>{label}</text>")
    parts.append(
        "</svg></div><p class=soft>Error of the predicted mean in percent points (root mean "
        f"square; {steps[0].unaided:.1f} without any benchmark).</p>"
    )
    return "".join(parts)


def _purpose(name: str) -> str:
    one = PURPOSES[name]
    return (
        f"<details><summary>{html.escape(one.what)}</summary><p>"
        f"<code>llama-fast eval MODEL --purpose {name} --minutes {one.minutes:g}</code></p>"
        f"<p>{html.escape(', '.join(one.parts))}</p><p class=soft>{html.escape(one.why)}</p>"
        "</details>"
    )


def _card(card: Card, dirty: float | None) -> str:
    human = "–" if card.human is None else f"{fixed(card.human, 1)} ({card.human_source})"
    facts = {
        "measures": card.measures,
        "format": card.format,
        "language": card.languages,
        "questions": f"{card.questions:,}",
        "chance": fixed(card.chance, 1),
        "human": human,
        "tokens a question": f"{costs()[card.name].tokens:,.0f}, {costs()[card.name].kind}",
        "contamination": "not looked for"
        if dirty is None
        else f"{100 * dirty:.1f} % of the questions are dirty",
        "licence": card.license,
        "sensitive to": card.sensitivity,
        "paper": ", ".join(f"{model} {fixed(score, 1)}" for model, score in card.paper.items()),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    return f"<details><summary>{html.escape(card.name)}</summary><dl>{rows}</dl></details>"
