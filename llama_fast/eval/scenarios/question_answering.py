"""Question answering with and without a passage, scored with exact match and token F1.

Natural Questions (open): Lee et al. 2019 (arXiv:1906.00300). SQuAD: Rajpurkar et al. 2016
(arXiv:1606.05250), whose normalisation and metrics both tasks use.

The mirrored data have no training split, so the examples in the prompt are the first rows of the
validation split, which are not scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from llama_fast.eval.suite.answers import exact_match, token_f1
from llama_fast.eval.suite.mirror import source

from .task import Document, ScenarioTask, check_fields

NQ_OPEN = "google-research-datasets/nq_open"
NQ_OPEN_POOL = 100  # first rows, which serve as examples and are not scored
SQUAD = "lighteval/squad_v2"


def score(doc: Document, answer: str) -> dict[str, float]:
    """Exact match and F1, each the maximum over the accepted answers."""
    return {
        "exact_match": max(exact_match(answer, gold) for gold in doc["answers"]),
        "f1": max(token_f1(answer, gold) for gold in doc["answers"]),
    }


def nq_open_task(data_dir: Path | None) -> ScenarioTask:
    """Natural Questions without a passage, with 5 examples."""
    rows = _validation(data_dir, NQ_OPEN, ("question", "answer"))
    documents: list[Document] = [
        {"question": row["question"], "answers": row["answer"], "target": row["answer"][0]}
        for row in rows
    ]
    return ScenarioTask(
        "scenario_nq_open",
        dataset=NQ_OPEN,
        documents=documents[NQ_OPEN_POOL:],
        pool=documents[:NQ_OPEN_POOL],
        num_fewshot=5,
        description="Answer these questions:\n\n",
        prompt="Q: {{question}}?\nA:",
        until=["\n"],
        max_gen_toks=32,
        metrics={"exact_match": "mean", "f1": "mean"},
        score=score,
    )


def squad_task(data_dir: Path | None) -> ScenarioTask:
    """SQuAD questions about a passage that contains the answer, with 3 examples.

    Questions without an answer are left out. The examples come from the first article of the file,
    one for each passage, and no question about that article is scored.
    """
    rows = _validation(data_dir, SQUAD, ("title", "context", "question", "answers"))
    documents: list[Document] = [
        {
            "title": row["title"],
            "context": row["context"],
            "question": row["question"],
            "answers": row["answers"]["text"],
            "target": row["answers"]["text"][0],
        }
        for row in rows
        if row["answers"]["text"]
    ]
    first = documents[0]["title"] if documents else None
    return ScenarioTask(
        "scenario_squad",
        dataset=SQUAD,
        documents=[doc for doc in documents if doc["title"] != first],
        pool=_one_a_passage([doc for doc in documents if doc["title"] == first]),
        num_fewshot=3,
        description="Answer each question with words of the passage.\n\n",
        prompt="Passage: {{context}}\nQuestion: {{question}}\nAnswer:",
        until=["\n"],
        max_gen_toks=64,
        metrics={"exact_match": "mean", "f1": "mean"},
        score=score,
    )


def _validation(data_dir: Path | None, path: str, fields: tuple[str, ...]) -> list[Document]:
    data = source(data_dir).load(path, None, ["validation"], {})["validation"]
    check_fields(data.column_names, fields, f"{path}, validation")
    return list(data)


def _one_a_passage(documents: list[Document]) -> list[Document]:
    """The first question of each passage, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for doc in documents:
        turns.append(seen[doc["context"]])
        seen[doc["context"]] += 1
    return [documents[i] for i in sorted(range(len(documents)), key=turns.__getitem__)]


TASKS: dict[str, Callable[[Path | None], ScenarioTask]] = {
    "scenario_nq_open": nq_open_task,
    "scenario_squad": squad_task,
}
