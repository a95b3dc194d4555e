"""The demo's results as a table on the terminal, and as ``demo-report.md`` with figures."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from llama_fast._format import times
from llama_fast._write import write_whole
from llama_fast.demo import plots
from llama_fast.demo.answer import EXPECTED
from llama_fast.demo.kernels import Check
from llama_fast.demo.results import Results, fastest

__all__ = ["markdown", "summary_rows", "summary_table", "write"]

PICTURES = "demo-report"  # folder beside the report


def summary_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """(what, ours, stock PyTorch or another baseline, verdict) for every result."""
    proofs = [check for check in results.checks if check.backend != "reference"]
    verdict = f"{sum(check.ok for check in proofs)} of {len(proofs)} checks pass"
    if not proofs:
        verdict = "no compiled kernels to check"
    rows = []
    for dtype in dict.fromkeys(check.dtype for check in results.checks):
        checks = [check for check in fastest(results.checks) if check.dtype == dtype]
        ours = max(max(c.forward, c.backward or 0.0) for c in checks)
        theirs = max(max(c.torch_forward, c.torch_backward or 0.0) for c in checks)
        rows.append((f"largest kernel error, {dtype}", f"{ours:.1e}", f"{theirs:.1e}", ""))
    rows[0] = (*rows[0][:3], verdict)
    answer, logits = results.answer, results.logits
    rows.append(
        (
            f"“{answer.prompt}”",
            f"“{answer.text}”",
            f"“{EXPECTED}”",
            "as expected" if answer.text.startswith(EXPECTED) else "another answer",
        )
    )
    rows.append(
        (
            "logits, deviation from float64",
            f"{logits.ours:.2e}",
            f"{logits.reference:.2e} (reference)",
            "as exact" if logits.ok else "less exact",
        )
    )
    training = results.training
    speed = [training.tokens_per_second(side) for side in ("llama_fast", "torch")]
    peak = [training.peak(side) / 1e9 for side in ("llama_fast", "torch")]
    rows.append(
        (
            "fine-tuning, tokens per second",
            f"{speed[0]:,.0f}",
            f"{speed[1]:,.0f}",
            f"{times(speed[0] / speed[1])} the speed",
        )
    )
    rows.append(
        (
            "fine-tuning, peak memory",
            f"{peak[0]:.2f} GB",
            f"{peak[1]:.2f} GB",
            f"{times(peak[0] / peak[1])} the memory",
        )
    )
    first = [training.of(side)[0] for side in ("llama_fast", "torch")]
    unseen = [f"{run.held_out_before:.3f} → {run.held_out_after:.3f}" for run in first]
    apart = f"curves at most {training.largest_loss_difference():.1e} apart"
    rows.append(("fine-tuning, loss on unseen text", unseen[0], unseen[1], apart))
    for score in results.scores:
        above = (score.accuracy - score.chance) / score.stderr if score.stderr else float("inf")
        rows.append(
            (
                f"{score.task}, accuracy ({score.count} questions)",
                f"{score.accuracy:.1%} ± {score.stderr:.1%}",
                f"{score.chance:.1%} (guessing)",
                f"{above:+.1f} standard errors",
            )
        )
    return rows


def summary_table(results: Results) -> Table:
    """The results as one table for the terminal."""
    table = Table(title="Summary", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("llama_fast", style="cyan")
    table.add_column("stock PyTorch")
    table.add_column("verdict")
    for row in summary_rows(results):
        table.add_row(*map(Text, row))
    return table


def kernel_table(checks: Sequence[Check]) -> Table:
    """The largest errors of each op, backend and precision, for the terminal."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.title = "Largest errors against float64: llama_fast / stock PyTorch"
    table.title_justify = "left"
    for column in ("op", "backend", "dtype", "output", "gradient", ""):
        table.add_column(column, no_wrap=True)
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.op, check.backend, check.dtype), []).append(check)
    for names, group in groups.items():
        failed = any(not check.ok for check in group)
        mark = _mark(group[0].backend, not failed)
        table.add_row(
            *names,
            _largest([(c.forward, c.torch_forward) for c in group]),
            _largest([(c.backward, c.torch_backward) for c in group]),
            Text(mark, "bold red" if failed else "green"),
        )
    return table


def _largest(errors: Sequence[tuple[float | None, float | None]]) -> str:
    """The largest error of ours and of PyTorch's; a dash where an op has no gradients."""
    ours, theirs = (
        max((e for e in side if e is not None), default=None) for side in zip(*errors, strict=True)
    )
    if ours is None:
        return "–"
    return f"{ours:.1e}/{theirs:.1e}".replace("e-0", "e-")  # short enough for 80 columns


def _mark(backend: str, ok: bool) -> str:
    """The verdict; the reference has none, because it cannot fail against itself."""
    return "FAIL" if not ok else "–" if backend == "reference" else "ok"


_KERNEL_COLUMNS = ("op", "options", "backend", "dtype", "output", "gradient", "")


def _kernel_cells(check: Check) -> tuple[str, ...]:
    return (
        check.op,
        check.what,
        check.backend,
        check.dtype,
        _largest([(check.forward, check.torch_forward)]),
        _largest([(check.backward, check.torch_backward)]),
        _mark(check.backend, check.ok),
    )


def markdown(results: Results) -> str:
    """The report as Markdown; its pictures are in the folder ``demo-report`` next to it."""
    versions, cpu = results.facts["versions"], results.facts["cpu"]
    settings = results.training.settings
    failures = results.failures()
    verdict = "Every check passed." if not failures else "**Failed checks:**"
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results.seconds.items())
    sections = [
        "# llama_fast demo report",
        "",
        f"`{results.command}` on {cpu['model']} ({cpu['torch_threads']} threads, instruction set "
        f"{cpu['instruction_set']}), Python {versions['python']}, torch {versions['torch']}, "
        f"llama_fast {versions['llama_fast']}. Time: {parts}.",
        "",
        verdict,
        *(f"- {line}" for line in failures),
        "",
        _table(("", "llama_fast", "stock PyTorch", "verdict"), summary_rows(results)),
        "",
        "## Kernels",
        "",
        "Each op runs forward and backward on each backend. An error is the largest deviation from "
        "the float64 reference on the same input, relative to the largest element of the tensor. "
        "A check passes if the root-mean-square error is at most PyTorch's and the largest at most "
        "twice PyTorch's, plus one rounding step of the precision. PyTorch's is that of its own "
        "function (shown) or of the formula in its elementary operations, the larger of the two. "
        "Ops that only the reference serves have no check (–).",
        "",
        _picture("kernels", "Errors of the kernels beside those of PyTorch"),
        "",
        _table(_KERNEL_COLUMNS, map(_kernel_cells, results.checks)),
        "",
        "## Model",
        "",
        f"SmolLM2-135M-Instruct continues “{results.answer.prompt}” greedily with "
        f"“{results.answer.text}” ({results.answer.tokens_per_second:.0f} tokens per second). On a "
        f"text of {results.logits.tokens} tokens our float32 logits deviate from float64 by "
        f"{results.logits.ours:.2e} (root-mean-square, of logits of {results.logits.size:.1f}), "
        f"those of the reference by {results.logits.reference:.2e}; the most likely token is that "
        f"of float64 at {results.logits.agreement:.1%} of the positions.",
        "",
        "## Fine-tuning",
        "",
        f"{settings.steps} steps of {settings.batch} × {settings.length} tokens of BoolQ passages, "
        f"{settings.dtype}, AdamW, learning rate {settings.learning_rate:g}, seed {settings.seed}. "
        "Each side runs in a process of its own; speed is that of the median step, memory the "
        "largest RSS during the steps. Stars in the picture: the loss on a batch of held-out "
        "passages before and after.",
        "",
        _picture("loss", "Loss curves of both sides"),
        "",
        _picture("speed", "Tokens per second and peak memory of both sides"),
        "",
        _table(
            ("round", "side", "tokens per second", "before the first step", "peak memory"),
            _run_rows(results),
        ),
        "",
        "## Questions",
        "",
        "Zero-shot, drawn at random from the validation splits. The choice with the highest "
        "log-likelihood per character counts as the answer; ± is the standard error.",
        "",
        _picture("accuracy", "Accuracy on the tasks beside guessing"),
        "",
        _table(
            ("task", "questions", "length-normalised", "not normalised", "guessing"),
            (
                (
                    s.task,
                    str(s.count),
                    f"{s.accuracy:.1%} ± {s.stderr:.1%}",
                    f"{s.raw_accuracy:.1%}",
                    f"{s.chance:.1%}",
                )
                for s in results.scores
            ),
        ),
        "",
    ]
    return "\n".join(sections)


def write(results: Results, folder: Path) -> Path:
    """Write ``demo-report.md``, its pictures and ``results.json`` to ``folder``.

    Returns:
        The path of the report.
    """
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    plots.kernel_errors(fastest(results.checks), pictures / "kernels.png")
    plots.loss_curves(results.training, pictures / "loss.png")
    plots.speed_and_memory(results.training, pictures / "speed.png")
    plots.accuracy(results.scores, pictures / "accuracy.png")
    write_whole(pictures / "results.json", json.dumps(asdict(results), indent=1))
    report = folder / "demo-report.md"
    write_whole(report, markdown(results))
    return report


def _run_rows(results: Results) -> Iterable[tuple[str, ...]]:
    training = results.training
    for number, run in enumerate(training.runs):
        yield (
            str(number // 2 + 1),
            plots.NAME[run.side],
            f"{training.rate(run):,.0f}",
            f"{run.resident / 1e9:.2f} GB",
            f"{run.peak / 1e9:.2f} GB",
        )


def _picture(name: str, text: str) -> str:
    return f"![{text}]({PICTURES}/{name}.png)"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
