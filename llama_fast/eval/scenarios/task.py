"""What the scenarios share: a harness task over rows in memory, and readers of data files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from llama_fast.eval.suite.mirror import MissingDataError

Document = dict[str, Any]


class ScenarioTask(ConfigurableTask):
    """A few-shot generation task whose documents are given as rows.

    Greedy decoding. The examples in the prompt are the first of the pool, the same for every
    document and every run, so that all prompts of a task begin alike and an engine that shares
    prefixes computes them once.

    Args:
        name: of the task.
        dataset: for the record, where its files lie in the data folder.
        documents: what is scored, with a key "target" for the right answer.
        pool: examples for the prompt, with the same keys; none of them is scored.
        num_fewshot: examples in a prompt.
        description: text before the examples.
        prompt: Jinja template of a document, up to the answer.
        until: strings that end an answer.
        max_gen_toks: longest answer, in tokens.
        metrics: name to aggregation (of the harness) over the documents' values.
        score: from a document and the answer to the document's value of every metric.
        metadata: for the results' record.

    Raises:
        ValueError: nothing to score, or fewer examples than num_fewshot.
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
            ValueError: negative, or more than there are.
        """
        most = len(self._rows["examples"])
        if not 0 <= num_fewshot <= most:
            raise ValueError(
                f"num_fewshot: expected 0 to {most} for {self.config.task}, got {num_fewshot}"
            )
        self.set_config("num_fewshot", num_fewshot)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Hand the rows over as the harness's `datasets` splits."""
        self.dataset = {k: datasets.Dataset.from_list(list(v)) for k, v in self._rows.items()}


def folder_in(data_dir: Path | None, relative: str) -> Path:
    """The folder of a data set that is in plain files only.

    Raises:
        MissingDataError: data_dir is None.
    """
    if data_dir is None:
        raise MissingDataError(f"{relative}: name the folder that holds it with data_dir")
    return data_dir / relative


def existing(path: Path) -> Path:
    """The path.

    Raises:
        MissingDataError: there is no such file.
    """
    if not path.is_file():
        raise MissingDataError(f"no file {path}: is data_dir the folder that holds scenarios/?")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without spaces around them.

    Raises:
        MissingDataError: there is no such file.
        ValueError: it is not UTF-8.
    """
    try:
        text = existing(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    # Not str.splitlines, which would also cut at Unicode's line separators.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def check_fields(found: Iterable[str], expected: Iterable[str], where: str | Path) -> None:
    """Raises ValueError if a field is absent from those of a data set's rows."""
    for field in set(expected) - set(found):
        raise ValueError(f"{where}: expected rows with a field {field!r}, got {sorted(found)}")
