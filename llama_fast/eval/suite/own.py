"""The base class of this package's own tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from lm_eval.api.task import ConfigurableTask

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["OwnTask", "generation", "sampled"]


def generation(max_tokens: int) -> dict[str, Any]:
    """Options for greedy generation up to the end of the line."""
    return {"until": ["\n"], "max_gen_toks": max_tokens, "do_sample": False, "temperature": 0.0}


def sampled(max_tokens: int) -> dict[str, Any]:
    """Options for sampling up to the end of the line as in the Llama 2 paper's safety tests.

    Temperature 0.1 and top-p 0.9 (Touvron et al. 2023, section 4.1).
    """
    return {**generation(max_tokens), "do_sample": True, "temperature": 0.1, "top_p": 0.9}


class OwnTask(ConfigurableTask):
    """A task that lm-eval lacks: one generation per question, scored by this package.

    Subclasses define ``SETTINGS`` (the harness's configuration), ``questions`` and
    ``process_results``.
    """

    SETTINGS: ClassVar[dict[str, Any]] = {}
    VERSION = 1

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        overrides = dict(config or {})
        metadata = {"version": self.VERSION, **overrides.pop("metadata", {})}
        settings = {
            "output_type": "generate_until",
            "num_fewshot": 0,
            "target_delimiter": " ",
            "process_docs": self._docs,
            # Marks the metrics as custom; the harness calls the method of this class.
            "process_results": "process_results",
            **self.SETTINGS,
            "metadata": metadata,
        }
        super().__init__(config={**settings, **overrides})

    def questions(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The questions in the rows of the data set."""
        raise NotImplementedError

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """A question's scores from the generated text."""
        raise NotImplementedError

    def fewshot_docs(self) -> None:
        """None: these tasks have no examples."""

    def _docs(self, dataset: Dataset) -> Dataset:
        from datasets import Dataset

        return Dataset.from_list(self.questions(dataset))
