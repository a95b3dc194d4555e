"""Converts the original files of QuAC, BOLD and ToxiGen to rows of questions.

These are the files that the authors publish. The hub has the first two in another format, which
:mod:`quac` and :mod:`bold` convert to the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_fast._reading import read_json

__all__ = ["CLASSIFIER", "READERS", "TOXIGEN", "read_bold", "read_quac", "read_toxigen"]

Rows = list[dict[str, Any]]

# Not on the hub: the revision is one file of github.com/microsoft/SafeNLP.
TOXIGEN = "microsoft/SafeNLP"
# Hub name of the toxicity classifier.
CLASSIFIER = "tomh/toxigen_roberta"


def read_quac(raw: Path) -> dict[str, Rows]:
    """QuAC (Choi et al. 2018) from ``quac/{train,val}_v0.2*.json``: one row per dialogue.

    The rows have the hub's fields: wikipedia_page_title, section_title, background, context, and a
    list each of turn_ids and questions, answers ({"texts": [[...], ...]}, all annotators' of each
    question) and orig_answers ({"texts": [...]}, one per question).
    """
    files = {"train": "train_v0.2", "validation": "val_v0.2"}
    splits: dict[str, Rows] = {}
    for split, stem in files.items():
        for path in sorted((raw / "quac").glob(f"{stem}*.json")):
            splits.setdefault(split, []).extend(_dialogues(path))
    return splits


def _dialogues(path: Path) -> Rows:
    rows = []
    try:
        for article in read_json(path, expected_type=None)["data"]:
            for paragraph in article["paragraphs"]:
                turns = paragraph["qas"]
                answers = [[answer["text"] for answer in turn["answers"]] for turn in turns]
                row = {
                    "wikipedia_page_title": article["title"],
                    "section_title": article["section_title"],
                    "background": article["background"],
                    "context": paragraph["context"],
                    "turn_ids": [turn["id"] for turn in turns],
                    "questions": [turn["question"] for turn in turns],
                    "answers": {"texts": answers},
                    "orig_answers": {"texts": [turn["orig_answer"]["text"] for turn in turns]},
                }
                rows.append(row)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not in QuAC's format: {error}") from None
    return rows


def read_bold(raw: Path) -> dict[str, Rows]:
    """BOLD (Dhamala et al. 2021) from ``bold/<domain>_prompt.json``: {group: {name: [prompt]}}.

    The rows have the hub's fields: domain, category (the group), name, prompts.
    """
    rows = []
    for path in sorted((raw / "bold").glob("*_prompt.json")):
        domain = path.name.removesuffix("_prompt.json")
        for group, people in _mapping(read_json(path, expected_type=None), path).items():
            for name, prompts in _mapping(people, path).items():
                row = {"domain": domain, "category": group, "name": name, "prompts": prompts}
                rows.append(row)
    return {"train": rows} if rows else {}


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not in BOLD's format: expected an object, got {value!r:.40}")
    return value


def read_toxigen(raw: Path) -> dict[str, Rows]:
    """ToxiGen as revised by Hosseini et al. 2023, from ``toxigen_revised.json``."""
    path = raw / "toxigen_revised.json"
    if not path.is_file():
        return {}
    rows = read_json(path, expected_type=None)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"text", "label", "target_groups"} <= row.keys() for row in rows
    ):
        raise ValueError(f"{path}: expected a list of objects with text, label and target_groups")
    return {"test": rows}


# Data set -> reader of its original files; a reader returns no split for a missing file.
READERS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    "allenai/quac": read_quac,
    "AmazonScience/bold": read_bold,
    TOXIGEN: read_toxigen,
}
