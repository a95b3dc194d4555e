"""Files of questions: where they may lie, and what happens if one is broken."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from llama_fast.eval.suite import load_tasks
from llama_fast.eval.suite import mirror as mirrors
from llama_fast.eval.suite.jsonl import read_uniform_rows
from llama_fast.eval.suite.quac import Quac
from llama_fast.eval.suite.raw import read_quac
from tests.paths import benchmark_data

PIQA = "baber/piqa/default/validation.jsonl"


@pytest.fixture
def piqa(mirror: Path, tmp_path: Path) -> Path:
    """A mirror of the first 20 questions of PIQA alone."""
    lines = (mirror / "hub" / PIQA).read_text(encoding="utf-8").splitlines()[:20]
    file = tmp_path / "hub" / PIQA
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"goal": "x", "sol1": "a"', "not JSON: "),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"goal": "x", "sol1": "a", "sol2": "b"}', "the object lacks field 'label'"),
        ('{"goal": "x", "sol1": "a", "sol2": "b", "label": "1"}', "'label': expected number"),
    ],
)
def test_a_broken_line_is_named(piqa: Path, line: str, what: str) -> None:
    lines = piqa.read_text(encoding="utf-8").splitlines()
    lines[6] = line
    piqa.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_tasks(["piqa"], data_dir=piqa.parents[3])
    assert f"{piqa}:7: " in str(caught.value) and what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(piqa: Path) -> None:
    lines = piqa.read_bytes().splitlines()
    lines[2] = b'{"goal": "\xff"}'
    piqa.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"validation\.jsonl:3: not UTF-8"):
        read_uniform_rows(piqa)


def test_an_empty_file_is_named(piqa: Path) -> None:
    piqa.write_text("\n")
    with pytest.raises(ValueError, match=r"validation\.jsonl: the file is empty"):
        load_tasks(["piqa"], data_dir=piqa.parents[3])


def test_a_broken_original_file_is_named(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "quac"
    (tmp_path / "hub").mkdir()
    shutil.copytree(mirror / "raw" / "quac", folder)
    file = folder / "val_v0.2.sample.json"
    text = json.dumps(json.loads(file.read_text(encoding="utf-8")), indent=1).splitlines()
    text[9] = text[9].rstrip(",") + " oops"
    file.write_text("\n".join(text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"val_v0\.2\.sample\.json:1[01]: not JSON"):
        load_tasks(["quac"], data_dir=tmp_path)


def test_data_dir_is_the_mirror_or_the_folder_above(mirror: Path, no_network: None) -> None:
    for folder in (mirror, mirror / "hub"):
        tasks = load_tasks(["piqa", "quac"], data_dir=folder)["tasks"]
        assert (len(tasks["piqa"].eval_docs), len(tasks["quac"].eval_docs)) == (1838, 41)


def test_questions_are_those_of_the_file(mirror: Path, no_network: None) -> None:
    task = load_tasks(["arc_challenge"], data_dir=mirror)["tasks"]["arc_challenge"]
    file = mirror / "hub/allenai/ai2_arc/ARC-Challenge/test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert task.eval_docs.to_list() == rows


def test_a_missing_test_split_is_replaced_and_said(mirror: Path, tmp_path: Path) -> None:
    file = "allenai/ai2_arc/ARC-Easy/validation.jsonl"
    (tmp_path / file).parent.mkdir(parents=True)
    shutil.copy(mirror / "hub" / file, tmp_path / file)
    loaded = load_tasks(["arc_easy"], data_dir=tmp_path)
    assert len(loaded["tasks"]["arc_easy"].eval_docs) == 570
    assert loaded["notes"] == {
        "arc_easy": "asked about the validation split: the data have no other"
    }


def test_the_original_download_is_back_after_loading(piqa: Path) -> None:
    from lm_eval.api.task import ConfigurableTask

    stock = ConfigurableTask.download
    load_tasks(["piqa"], data_dir=piqa.parents[3])
    assert ConfigurableTask.download is stock


def test_without_hub_the_demo_cache_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    benchmark_data()
    monkeypatch.setattr(mirrors, "_ONLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    loaded = load_tasks(["arc_easy", "boolq", "mmlu_anatomy", "triviaqa_wiki_5shot"])["tasks"]
    sizes = {name: len(task.eval_docs) for name, task in loaded.items()}
    assert sizes == {
        "arc_easy": 570,
        "boolq": 3270,
        "mmlu_anatomy": 135,
        "triviaqa_wiki_5shot": 7993,
    }
    assert loaded["boolq"].eval_docs[0]["label"] == 0
    with pytest.raises(mirrors.MissingDataError, match="openai/gsm8k: the hub cannot be reached"):
        load_tasks(["gsm8k"])


def test_a_stand_in_is_said(mirror: Path, tmp_path: Path, no_network: None) -> None:
    """This mirror has TriviaQA's Wikipedia part under the name of the whole."""
    said = "rc.nocontext stands in for rc.wikipedia.nocontext: 7,993 questions"
    assert load_tasks(["triviaqa_wiki_5shot"], data_dir=mirror)["notes"] == {
        "triviaqa_wiki_5shot": said
    }
    folder = tmp_path / "hub" / "mandarjoshi" / "trivia_qa"
    shutil.copytree(mirror / "hub/mandarjoshi/trivia_qa/rc.nocontext", folder / "rc.nocontext")
    (folder / "rc.nocontext").rename(folder / "rc.wikipedia.nocontext")
    assert load_tasks(["triviaqa_wiki_5shot"], data_dir=tmp_path)["notes"] == {}


# --- the hub, whose library is told what to answer ---------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, mirror: Path, no_network: None) -> dict[str, Any]:
    """What the hub gives, by name of the set: an error, or rows; else what the mirror has."""
    given: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        found = given.get(path)
        if callable(found):
            found = found(name, options)
        if isinstance(found, Exception):
            raise found
        return found or mirrors.Mirror(mirror).load(path, name, None, {})

    monkeypatch.setattr(mirrors, "_ONLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return given


SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found x.py")


def test_sets_that_the_hub_does_not_give_are_missing(hub: dict[str, Any]) -> None:
    hub["Rowan/hellaswag"] = datasets.exceptions.DatasetNotFoundError("it\nis gated")
    hub["baber/piqa"] = ConnectionError("503 Server Error")
    hub["allenai/openbookqa"] = datasets.exceptions.DatasetGenerationError("a broken file")
    hub["lighteval/siqa"] = SCRIPT
    hub["allenai/winogrande"] = hub["google-research-datasets/nq_open"] = {
        "validation": datasets.Dataset.from_list([{"other": 1}])
    }
    loaded = load_tasks("llama2")
    missing = loaded["missing"]
    assert "arc_easy" in loaded["tasks"]
    for name, reason in {
        "hellaswag": "Rowan/hellaswag: the hub does not give the data set; .*it is gated",
        "piqa": "503 Server Error",
        "openbookqa_ratio": "a broken file",
        "social_iqa_norm": "scripts are no longer supported",
        "winogrande": "^KeyError: ",
        "nq_open_5shot": "^[A-Za-z]*Error: ",
    }.items():
        assert re.search(reason, missing[name]), missing[name]
    assert missing.keys() == {
        "hellaswag", "piqa", "openbookqa_ratio", "social_iqa_norm", "winogrande", "nq_open_5shot",
        "humaneval_sampled", "mbpp_sampled", "toxigen_generation",
    }  # fmt: skip
    with pytest.raises(mirrors.MissingDataError, match="503 Server Error"):
        load_tasks(["piqa"])


def test_of_a_set_that_is_a_script_the_conversion_is_taken(
    hub: dict[str, Any], mirror: Path
) -> None:
    asked = []

    def arc(name: str | None, options: dict[str, Any]) -> Any:
        asked.append((name, options))
        if "revision" not in options:
            return SCRIPT
        return mirrors.Mirror(mirror).load("allenai/ai2_arc", options["data_dir"], None, {})

    hub["allenai/ai2_arc"] = arc
    assert len(load_tasks(["arc_easy"])["tasks"]["arc_easy"].eval_docs) == 60
    assert asked == [
        ("ARC-Easy", {}),
        (None, {"data_dir": "ARC-Easy", "revision": "refs/convert/parquet"}),
    ]


def test_quac_in_the_hub_s_shape(hub: dict[str, Any], mirror: Path) -> None:
    """The hub's answers are one record of lists a dialogue; a mirror may have a list of records."""
    rows = read_quac(mirror / "raw")["validation"]
    lists = datasets.List(datasets.Value("string")), datasets.List(datasets.Value("int64"))
    starts = [[[0] * len(texts) for texts in row["answers"]["texts"]] for row in rows]
    as_hub = [
        {**row, "answers": {**row["answers"], "answer_starts": start}}
        for row, start in zip(rows, starts, strict=True)
    ]
    features = datasets.Dataset.from_list(as_hub).features
    assert features["answers"] == {
        "texts": datasets.List(lists[0]),
        "answer_starts": datasets.List(lists[1]),
    }
    hub["allenai/quac"] = {"validation": datasets.Dataset.from_list(as_hub)}
    documents = load_tasks(["quac"])["tasks"]["quac"].eval_docs.to_list()
    assert len(documents) == 41
    quac = load_tasks(["quac"], data_dir=mirror)["tasks"]["quac"]
    assert isinstance(quac, Quac) and quac.eval_docs.to_list() == documents
    as_records = [
        {**row, "answers": [{"texts": texts} for texts in row["answers"]["texts"]]} for row in rows
    ]
    assert quac.questions(as_records) == documents
