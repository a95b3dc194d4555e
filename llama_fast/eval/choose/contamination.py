"""The contamination that `llama-fast data check` found, by benchmark."""

from __future__ import annotations

from pathlib import Path

from llama_fast._reading import read_json
from llama_fast.eval.choose.cards import cards

__all__ = ["dirty_shares"]


def dirty_shares(path: Path) -> dict[str, float]:
    """Benchmark -> the share of its questions that are dirty: 80 % of their tokens were seen.

    Args:
        path: the file ``contamination.json``. Files of benchmarks that have no card are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--contamination: no such file: {path}")
    report = read_json(path)
    try:
        counts: dict[str, list[int]] = {}
        for benchmark in report["benchmarks"]:
            for name in benchmark["texts"]:
                if name in cards() and len(benchmark["texts"]) == 1:
                    of = counts.setdefault(name, [0, 0])
                    of[0] += int(benchmark["counts"]["dirty"])
                    of[1] += len(benchmark["questions"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--contamination: expected a contamination.json of `llama-fast data check`, got "
            f"{path}, which lacks {error}"
        ) from None
    return {name: dirty / number for name, (dirty, number) in counts.items() if number}
