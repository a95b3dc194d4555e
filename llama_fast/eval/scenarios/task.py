"""A harness task over rows in memory, and readers of data files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from llama_fast.eval.suite.mirror import MissingDataError

Document = dict[str, Any]


class ScenarioTask(ConfigurableTask):
    """A few-shot generation task over documents in memory, with greedy decoding.

    The examples in the prompt are the first ones of the pool, the same for every document and run.
    All prompts of a task therefore share a prefix, which an engine can compute once.

    Args:
        name: name of the task.
        dataset: path of its files in the data folder; recorded in the results.
        documents: the documents to score, each with the right answer under "target".
        pool: examples for the prompt, with the same keys; they are not scored.
        num_fewshot: number of examples in a prompt.
        description: text before the examples.
        prompt: Jinja template of a document up to the answer.
        until: strings that end an answer.
        max_gen_toks: maximum length of an answer in tokens.
        metrics: metric -> the harness's aggregation over documents.
        score: function from document and answer to the value of each metric.
        metadata: recorded in the results.

    Raises:
        ValueError: there are no documents, or fewer examples than `num_fewshot`.
    """

    def __init__(
        self,
        name: str,
        *,
        dataset: str,
        documents: Sequence[Document],
        pool: Sequence[Document],
        num_fewshot: int,
        description: str,
        prompt: str,
        until: Sequence[str],
        max_gen_toks: int,
        metrics: dict[str, str],
        score: Callable[[Document, str], dict[str, Any]],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if not documents:
            raise ValueError(f"{name}: expected questions to score in {dataset}, got none")
        self._rows = {"test": documents, "examples": pool}
        super().__init__(
            config={
                "task": name,
                "dataset_path": dataset,
                "test_split": "test",
                "fewshot_split": "examples",
                "fewshot_config": {"sampler": "first_n"},
                "output_type": "generate_until",
                "description": description,
                "doc_to_text": prompt,
                "doc_to_target": "target",
                "generation_kwargs": {
                    "until": list(until),
                    "max_gen_toks": max_gen_toks,
                    "do_sample": False,
                    "temperature": 0.0,
                },
                "process_results": lambda doc, answers: score(doc, answers[0]),
                "metric_list": [
                    {"metric": metric, "aggregation": aggregation, "higher_is_better": True}
                    for metric, aggregation in metrics.items()
                ],
                "metadata": {"version": 1.0, **(metadata or {})},
            }
        )
        self.set_shots(num_fewshot)

    def set_shots(self, num_fewshot: int) -> None:
        """Set the number of examples in a prompt.

        Raises:
            ValueError: the number is negative or larger than the pool.
        """
        limit = len(self._rows["examples"])
        if not 0 <= num_fewshot <= limit:
            raise ValueError(
                f"num_fewshot: expected 0 to {limit} for {self.config.task}, got {num_fewshot}"
            )
        self.set_config("num_fewshot", num_fewshot)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Provide the rows as `datasets` splits, in place of the harness's download."""
        self.dataset = {k: datasets.Dataset.from_list(list(v)) for k, v in self._rows.items()}


def folder_in(data_dir: Path | None, relative: str) -> Path:
    """The folder of a data set that exists as plain files only.

    Raises:
        MissingDataError: data_dir is None.
    """
    if data_dir is None:
        raise MissingDataError(f"{relative}: name the folder that holds it with data_dir")
    return data_dir / relative


def existing(path: Path) -> Path:
    """`path`, checked to be a file.

    Raises:
        MissingDataError: there is no such file.
    """
    if not path.is_file():
        raise MissingDataError(f"no file {path}: is data_dir the folder that holds scenarios/?")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped.

    Raises:
        MissingDataError: there is no such file.
        ValueError: it is not UTF-8.
    """
    try:
        text = existing(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    # Not str.splitlines, which also splits at Unicode line separators.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def check_fields(fields: Iterable[str], expected: Iterable[str], where: str | Path) -> None:
    """Raise ValueError if the fields of a data set's rows lack an expected one."""
    for field in set(expected) - set(fields):
        raise ValueError(f"{where}: expected rows with a field {field!r}, got {sorted(fields)}")
