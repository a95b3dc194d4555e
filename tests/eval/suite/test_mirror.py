"""Files of questions: where they may lie, and what happens if one is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llama_fast.demo.fetch import BENCHMARKS, FetchError, fetch
from llama_fast.eval.suite import load_tasks
from llama_fast.eval.suite import mirror as mirrors
from llama_fast.eval.suite.jsonl import read_jsonl

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
        read_jsonl(piqa)


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
    try:
        fetch(BENCHMARKS, download=False)
    except FetchError as error:
        pytest.skip(f"the demo's benchmarks are not in the cache: {error}")
    import datasets

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
