"""Translation of Multi30k captions, scored with BLEU and chrF over the corpus.

Elliott et al. 2016, "Multi30K: Multilingual English-German Image Descriptions" (arXiv:1605.00459)
and Elliott et al. 2017 (arXiv:1710.07177) for French. BLEU: Papineni et al. 2002; chrF: Popović
2015; both with sacrebleu's defaults (Post 2018, arXiv:1804.08771), as in the harness's aggregations
"bleu" and "chrf". The task's metadata records their signatures.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from .task import Document, ScenarioTask, folder_in, read_lines

LANGUAGES = {"en": "English", "de": "German", "fr": "French"}
FOLDER = "scenarios/translation/multi30k"


def translation_task(data_dir: Path | None, *, source: str, target: str) -> ScenarioTask:
    """Captions of test_2016_flickr from language `source` to `target`, with 5 examples of val."""
    folder = folder_in(data_dir, FOLDER)
    return ScenarioTask(
        f"scenario_multi30k_{source}_{target}",
        dataset=FOLDER,
        documents=_pairs(folder, "test_2016_flickr", source, target),
        pool=_pairs(folder, "val", source, target),
        num_fewshot=5,
        description=f"Translate from {LANGUAGES[source]} to {LANGUAGES[target]}.\n\n",
        prompt=f"{LANGUAGES[source]}: {{{{source}}}}\n{LANGUAGES[target]}:",
        until=["\n"],
        max_gen_toks=128,
        metrics={"bleu": "bleu", "chrf": "chrf"},
        score=_pair,
        metadata={"signatures": signatures()},
    )


def signatures() -> dict[str, str]:
    """sacrebleu's signature of each metric's settings."""
    result = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(
            ["a"], [["a"]]
        )  # the signature needs the number of references, known after scoring
        result[name] = str(metric.get_signature())
    return result


def _pairs(folder: Path, split: str, source: str, target: str) -> list[Document]:
    files = [folder / f"{split}.{language}" for language in (source, target)]
    sources, targets = (read_lines(file) for file in files)
    if len(sources) != len(targets):
        raise ValueError(
            f"{files[1]}: expected as many lines as {files[0].name} has, {len(sources)}, got "
            f"{len(targets)}"
        )
    return [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]


def _pair(doc: Document, answer: str) -> dict[str, Any]:
    """Reference and answer, from which the corpus metrics are computed."""
    pair = (doc["target"], answer.strip())
    return {"bleu": pair, "chrf": pair}


TASKS = {
    f"scenario_multi30k_{source}_{target}": partial(translation_task, source=source, target=target)
    for source, target in (("en", "de"), ("en", "fr"), ("de", "en"), ("fr", "en"))
}
