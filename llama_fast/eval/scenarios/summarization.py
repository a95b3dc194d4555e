"""Summarisation of dialogues, scored with ROUGE against three references.

DialogSum: Chen et al. 2021 (Findings of ACL, arXiv:2105.06762). ROUGE: Lin 2004. As in the paper,
a dialogue's score is the *mean* of the F-measures against its references, on stemmed words. On the
test references this reproduces the human agreement in the paper's table (ROUGE-1 53.35, ROUGE-2
26.72); the maximum over references would give 59.6 and 34.1. ROUGE-L is that of rouge-score, over
the summary as one sequence; the paper's package, py-rouge, has other weights and gives about 6
points more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from llama_fast.eval.suite.jsonl import read_uniform_rows

from .task import Document, ScenarioTask, check_fields, existing, folder_in

FOLDER = "scenarios/summarization/dialogsum"
METRICS = ("rouge1", "rouge2", "rougeL")

_scorer = RougeScorer(METRICS, use_stemmer=True)


def score(doc: Document, answer: str) -> dict[str, float]:
    """Mean F-measure over the references, for each ROUGE metric."""
    references = doc["references"]
    result = [_scorer.score(reference, answer) for reference in references]
    return {
        metric: sum(scores[metric].fmeasure for scores in result) / len(references)
        for metric in METRICS
    }


def dialogsum_task(data_dir: Path | None) -> ScenarioTask:
    """Summaries of the test dialogues, with 2 examples of the dev part."""
    folder = folder_in(data_dir, FOLDER)
    return ScenarioTask(
        "scenario_dialogsum",
        dataset=FOLDER,
        documents=_read(folder / "dialogsum.test.jsonl", ("summary1", "summary2", "summary3")),
        pool=_read(folder / "dialogsum.dev.jsonl", ("summary",)),
        num_fewshot=2,
        description="Summarize each dialogue in one or two sentences.\n\n",
        prompt="Dialogue:\n{{dialogue}}\nSummary:",
        until=["\n"],
        max_gen_toks=160,
        metrics=dict.fromkeys(METRICS, "mean"),
        score=score,
        metadata={"rouge": "rouge-score, stemmed, F-measure, mean over the references"},
    )


def _read(path: Path, summaries: tuple[str, ...]) -> list[Document]:
    documents = []
    rows = read_uniform_rows(existing(path))
    check_fields(rows[0], ("dialogue", *summaries), path)
    for row in rows:
        # A line break would end a summary in the prompt; the dev part has one.
        references = [" ".join(row[key].split()) for key in summaries]
        documents.append(
            {
                "dialogue": row["dialogue"].strip(),
                "references": references,
                "target": references[0],
            }
        )
    return documents


TASKS: dict[str, Callable[[Path | None], ScenarioTask]] = {"scenario_dialogsum": dialogsum_task}
