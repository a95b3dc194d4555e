"""The harness's own tasks on real data, and its own engine beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from llama_fast.data.chat import TEMPLATES
from llama_fast.eval.suite import load_tasks
from llama_fast.models import LLaMA, save
from llama_fast.tokenizers import Tokenizer
from tests.paths import mirror


@cache
def data_dir() -> Path:
    """The mirror of the data sets."""
    return mirror()


def instances(task: str, limit: int) -> list[Instance]:
    """The requests of a task's first questions."""
    found = load_tasks([task], data_dir=data_dir())["tasks"][task]
    found.build_all_requests(limit=limit)
    return found.instances


def huggingface_folder(model: LLaMA, tokenizer: Tokenizer, folder: Path) -> Path:
    """The model as transformers reads it."""
    tokenizer.chat_template = TEMPLATES["chatml"]
    save(model, folder, tokenizer)
    return folder


def best(answers: Sequence[tuple[float, bool]], requests: Sequence[Instance]) -> list[int]:
    """Of each question the number of the likeliest option, as one list."""
    options: dict[Any, list[float]] = {}
    for (logprob, _), request in zip(answers, requests, strict=True):
        options.setdefault(request.doc_id, []).append(logprob)
    return [max(range(len(v)), key=v.__getitem__) for v in options.values()]
