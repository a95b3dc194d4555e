"""Tasks of lm-eval with the Llama 2 paper's number of shots and normalisation.

A variant is a task's configuration with some entries replaced. It has its own name, so that one run
can contain both.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval.api.task import ConfigurableTask

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

from llama_fast.eval.suite.subjects import BBH, MMLU

__all__ = ["GROUPS", "VARIANTS", "CompletionRatioTask", "Variant", "VariantGroup"]


class CompletionRatioTask(ConfigurableTask):
    """Multiple choice by P(choice | question) / P(choice | "Answer:").

    Brown et al. 2020 (GPT-3, section 2.4) use this for benchmarks whose answers differ in their
    unconditional probability. The metric is the harness's ``acc_mutual_info``, which divides by
    P(choice) without a context; here the divisor has the context "Answer:".
    """

    ANSWER = "Answer:"

    def construct_requests(
        self, doc: dict[str, Any], ctx: Any, **kwargs: Any
    ) -> list[Instance] | Instance:
        """The harness's requests, with the context "Answer:" in place of an empty one."""
        requests = super().construct_requests(doc, ctx, **kwargs)
        for request in requests:
            context, *rest = request.arguments
            if context == "":
                request.arguments = (self.ANSWER, *rest)
        return requests


@dataclass(frozen=True)
class Variant:
    """A task derived from one of lm-eval.

    Attributes:
        base: name of the task in lm-eval.
        changes: entries of its configuration to replace.
        task: the class to build.
        generation: options of generation to replace.
    """

    base: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    task: type[ConfigurableTask] = ConfigurableTask
    generation: Mapping[str, Any] = field(default_factory=dict)

    def build(self, name: str, stock: dict[str, Any]) -> ConfigurableTask:
        """The task ``name`` from the configuration of the base task."""
        config = {**deepcopy(stock), **deepcopy(dict(self.changes)), "task": name}
        if self.generation:
            config["generation_kwargs"] = {**config["generation_kwargs"], **self.generation}
        for key in ("tag", "group", "task_list", "class"):
            config.pop(key, None)
        return self.task(config=config)


@dataclass(frozen=True)
class VariantGroup:
    """A group of variants.

    Attributes:
        tasks: names of its variants.
        metrics: the harness's ``aggregate_metric_list``.
    """

    tasks: tuple[str, ...]
    metrics: tuple[Mapping[str, Any], ...]


def _metrics(*names: str) -> dict[str, Any]:
    entries = [{"metric": n, "aggregation": "mean", "higher_is_better": True} for n in names]
    return {"metric_list": entries}


# Text generated with a byte-level tokenizer begins with a space, which the targets do not have.
_STRIPPED = {
    "filter_list": [
        {
            "name": "strip",
            "filter": [
                {"function": "regex", "regex_pattern": r"(?s)^\s*(.*?)\s*$"},
                {"function": "take_first"},
            ],
        }
    ]
}

# The harness's pattern ends with "any character", which takes the last digit of an answer without
# a full stop: "The answer is 18" reads 1. Here the number ends with a digit.
_NUMBER = {
    "filter_list": [
        {
            "name": "strict-match",
            "filter": [
                {
                    "function": "regex",
                    "regex_pattern": r"The answer is \$?(-?(?:[0-9][0-9.,]*)?[0-9])",
                },
                {"function": "take_first"},
            ],
        }
    ]
}

# Of the paper for pass@1 (Touvron et al. 2023, appendix A.2.2). The harness's engine seeds each
# request by its number, so that a run can be repeated.
_SAMPLED = {"do_sample": True, "temperature": 0.1, "top_p": 0.95}

VARIANTS: dict[str, Variant] = {
    "social_iqa_norm": Variant("social_iqa", _metrics("acc", "acc_norm")),
    "openbookqa_ratio": Variant(
        "openbookqa", _metrics("acc", "acc_norm", "acc_mutual_info"), CompletionRatioTask
    ),
    "boolq_ratio": Variant("boolq", _metrics("acc", "acc_mutual_info"), CompletionRatioTask),
    "humaneval_sampled": Variant("humaneval", generation=_SAMPLED),
    "mbpp_sampled": Variant("mbpp", generation=_SAMPLED),
    "gsm8k_cot_number": Variant("gsm8k_cot", _NUMBER),
    "commonsense_qa_7shot": Variant("commonsense_qa", {"num_fewshot": 7}),
    "nq_open_5shot": Variant("nq_open", {"num_fewshot": 5}),
    "triviaqa_wiki_5shot": Variant(
        "triviaqa", {"num_fewshot": 5, "dataset_name": "rc.wikipedia.nocontext"}
    ),
    **{f"bbh_3shot_{s}": Variant(f"bbh_fewshot_{s}", _STRIPPED) for s in BBH},
    **{f"mmlu_5shot_{s}": Variant(f"mmlu_{s}", {"num_fewshot": 5}) for s in MMLU},
}

GROUPS: dict[str, VariantGroup] = {
    "bbh_3shot": VariantGroup(
        tuple(f"bbh_3shot_{s}" for s in BBH),
        ({"metric": "exact_match", "filter_list": "strip", "weight_by_size": True},),
    ),
    "mmlu_5shot": VariantGroup(
        tuple(f"mmlu_5shot_{s}" for s in MMLU), ({"metric": "acc", "weight_by_size": True},)
    ),
}
