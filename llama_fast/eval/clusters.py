"""Which questions share a text, so that a model's answers to them are not independent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

# Fields that hold what several questions share, in the data sets that the harness knows: the video
# or article of HellaSwag; the dialogue of QuAC; the passage of BoolQ and DROP, of SQuAD and SIQA,
# of RACE, and of CoQA.
FIELDS = ("source_id", "dialogue_id", "passage", "context", "article", "story")
# Where the question begins behind the passage: AGIEval's field `query`.
_AGIEVAL = "Q: "
# MMLU's questions on documents begin with this; their last line is the question.
_MMLU = "This question refers to the following information."


def cluster_of(doc: Any) -> str | None:
    """A name for what a question shares with others; None if its row names nothing.

    Args:
        doc: the question's row in the data set, as the harness logs it.
    """
    if not isinstance(doc, Mapping):
        return None
    shared = next((doc[name] for name in FIELDS if isinstance(doc.get(name), str)), None)
    if not shared and isinstance(doc.get("query"), str) and isinstance(doc.get("gold"), list):
        shared, found, _ = doc["query"].partition(_AGIEVAL)
        shared = shared if found else None
    question = doc.get("question")
    if not shared and isinstance(question, str) and question.startswith(_MMLU):
        shared = question.rstrip().rpartition("\n")[0]
    if not shared or not shared.strip():
        return None
    return hashlib.sha256(" ".join(shared.split()).encode()).hexdigest()[:16]
