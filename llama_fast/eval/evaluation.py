"""`evaluate`: next-token accuracy on batches, or scores on benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from torch import Tensor, nn

from .accuracy import next_token_accuracy

if TYPE_CHECKING:
    from llama_fast.eval.report.scores import Score


@overload
def evaluate(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    *,
    ignore_index: int = -100,
) -> float: ...


@overload
def evaluate(
    model: Any,
    data: str | Sequence[str],
    *,
    tokenizer: Any = None,
    limit: int | str | None = None,
    num_fewshot: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> dict[str, Score]: ...


def evaluate(
    model: Any,
    data: str | Sequence[str] | Iterable[tuple[Tensor, Tensor]],
    *,
    ignore_index: int = -100,
    tokenizer: Any = None,
    limit: int | str | None = None,
    num_fewshot: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> float | dict[str, Score]:
    """Return the next-token accuracy of `model` on batches, or its scores on benchmarks.

    Args:
        model: for batches, a module from tokens (B,S) to logits (B,S,V); for benchmarks, also a
            path or name, and a model of transformers (see
            :class:`llama_fast.eval.harness.HarnessModel`).
        data: batches: pairs of tokens (B,S) and targets (B,S), int64, where ``targets[b, s]`` is
            the token that follows ``tokens[b, s]``. Or benchmarks: names of tasks, groups and
            presets, as on the command line of ``llama-fast eval``.
        ignore_index: batches only: targets with this value are not counted.
        tokenizer: benchmarks only: a file, folder or object; None: the model's own.
        limit: benchmarks only: number of questions per task, as ``--limit``, drawn with `seed`;
            None: all.
        num_fewshot: benchmarks only: examples before each question; None: the task's own number.
        data_dir: benchmarks only: local mirror of the data sets; None: the hub.
        out: benchmarks only: folder for results, samples and answers, which are reused by the next
            run; None: nothing is kept.
        **options: benchmarks only: dtype, device, batch_size, budget, max_length, seed and
            trust_remote_code of :class:`llama_fast.eval.harness.HarnessModel`.

    Returns:
        Batches: the accuracy in [0, 1], or NaN if no target is counted. Benchmarks: task or group
        -> its score, with value, standard error and metric.

    Raises:
        ValueError: the shape of the targets is not that of the tokens, or a name is unknown.
        MissingDataError: the data of a benchmark cannot be had.
        RuntimeError: a benchmark could not be scored.

    Example:
        >>> accuracy = llama_fast.evaluate(model, validation_batches)
        >>> scores = llama_fast.evaluate("model.gguf", ["arc_easy", "piqa"], limit=200)
        >>> print(scores["arc_easy"])
        52.5 ± 3.5 %
    """
    if isinstance(data, str):
        names = [name.strip() for name in data.split(",")]
    elif isinstance(data, Sequence) and data and all(isinstance(item, str) for item in data):
        names = list(data)
    else:
        given = {
            "tokenizer": tokenizer,
            "limit": limit,
            "num_fewshot": num_fewshot,
            "data_dir": data_dir,
            "out": out,
            **options,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: expected none with batches of tokens, got {value!r}")
        batches = cast(Iterable[tuple[Tensor, Tensor]], data)
        return next_token_accuracy(model, batches, ignore_index=ignore_index)
    return _benchmark_scores(model, names, tokenizer, limit, num_fewshot, data_dir, out, options)


def _benchmark_scores(
    model: Any,
    names: list[str],
    tokenizer: Any,
    limit: int | str | None,
    num_fewshot: int | None,
    data_dir: str | Path | None,
    out: str | Path | None,
    options: dict[str, Any],
) -> dict[str, Score]:
    """Run the benchmarks in a folder of their own, or in `out`; see :func:`evaluate`."""
    from llama_fast.eval.harness import HarnessModel
    from llama_fast.eval.limits import Limits
    from llama_fast.eval.report.scores import scores_of
    from llama_fast.eval.report.suites import metric_keys
    from llama_fast.eval.run import evaluate_tasks, load
    from llama_fast.eval.suite import PRESETS

    limits = Limits.parse(None if limit is None else str(limit), seed=int(options.get("seed") or 0))
    loaded = load(names, None if data_dir is None else Path(data_dir), num_fewshot=num_fewshot)
    limits.check(list(loaded["tasks"]))
    keys: dict[str, str] = {}
    for name in names:
        keys |= metric_keys(name) if name in PRESETS else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        cache = None if out is None else folder / "requests.sqlite"
        lm = HarnessModel(model, tokenizer, cache=cache, **options)
        outcome = evaluate_tasks(lm, loaded, folder, limits=limits, keys=keys)
    if outcome.not_scored:
        task, reason = next(iter(outcome.not_scored.items()))
        raise RuntimeError(f"{task}: {reason}")
    return scores_of(outcome.results, keys)
