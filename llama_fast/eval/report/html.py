"""Writes one HTML file that shows a run, or two side by side, without network access."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from llama_fast._write import write_whole
from llama_fast.eval.report.compare import Comparison, compare, names_of
from llama_fast.eval.report.page_data import PageData, collect
from llama_fast.eval.report.results import Run

PAGE = Path(__file__).with_name("page")
# In the order in which they run.
SCRIPTS = ("base.js", "groups.js", "bars.js", "calibration.js", "questions.js", "main.js")
# Questions of a task in the page; changed answers come first.
MAX_QUESTIONS = 2_000


def write_page(
    path: str | os.PathLike[str],
    run: Run,
    other: Run | None = None,
    *,
    comparison: Comparison | None = None,
    max_questions: int = MAX_QUESTIONS,
    rows: Sequence[str] | None = None,
) -> Path:
    """Write the report of a run, or of two.

    The page holds texts of models and data sets as JSON and shows them as text only. Its content
    security policy allows its own script and no requests.

    Args:
        path: the file; its folder is created if missing.
        run: the run; its metadata is shown, see :func:`~.results.write_run`.
        other: a run to compare it with.
        comparison: the comparison of the two, if already computed.
        max_questions: questions of each task in the page; the page states what is left out.
        rows: rows of the paper that are shown first, such as "Llama 2 7B"; the two smallest
            Llama models if None. The reader can choose others.

    Raises:
        OSError: the file cannot be written.
        ValueError: the paper has no such row, or samples are damaged.
    """
    path = Path(path)
    if other is not None and comparison is None:
        comparison = compare(run, other)
    names = (run.name,) if other is None else names_of(run, other)
    data = collect(run, other, names, comparison, max_questions, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(" and ".join(names), data))
    return path


def render(title: str, data: PageData) -> str:
    """The page's HTML."""
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # The script positions bars and ticks, which is not an inline style.
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    blobs = "\n".join(
        f'<script type="text/plain" id="block-{at}">{_packed(questions)}</script>'
        for at, questions in enumerate(data.questions)
    )
    template = Template((PAGE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"Evaluation of {title}"),
        about="About this run" if len(data.summary["runs"]) == 1 else "About the runs",
        policy=html.escape(policy),
        style=style,
        script=script,
        data=_json(data.summary),
        blobs=blobs,
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON in which no text can end a script element."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(value: Any) -> str:
    data = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(data.encode(), 6, mtime=0)).decode()


def _finite(value: Any) -> Any:
    """`value` with null for infinity and NaN, which JSON lacks; the page shows them as missing."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
