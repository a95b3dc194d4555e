"""The conditions in which two runs differ, in the terminal and on the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_fast.cli.main import main
from llama_fast.eval.report import Run, read_run
from llama_fast.eval.report.conditions import differing_conditions
from tests.eval.report.runs import BFLOAT16, FLOAT32, QUESTIONS


def altered(folder: Path, **facts: Any) -> Run:
    """The float32 run in `folder`, with other metadata."""
    if not folder.exists():
        shutil.copytree(FLOAT32, folder)
    results = json.loads((folder / "results.json").read_text())
    results["llama_fast"].update(facts)
    (folder / "results.json").write_text(json.dumps(results))
    return read_run(folder)


def test_equal_conditions_are_not_mentioned() -> None:
    assert differing_conditions(read_run(FLOAT32), read_run(FLOAT32)) is None


@pytest.mark.parametrize(
    ("key", "a", "b", "said"),
    [
        ("dtype", "float32", "float16", "dtype (A float32, B float16)"),
        ("max_length", 2048, 8192, "max_length (A 2048, B 8192)"),
        ("tokenizer_sha256", "aac7", "11fe", "tokenizer (A aac7, B 11fe)"),
        ("preset", "llama2-paper", None, "preset (A llama2-paper, B none)"),
        ("quantization", "Q4_1", "Q8_0", "quantization (A Q4_1, B Q8_0)"),
        ("chat_template", None, "{{ x }}", "chat template (A none, B {{ x }})"),
        ("chat_template", "a" * 30, "a" * 31, "chat template"),
        ("fewshot_as_multiturn", False, True, "chat (A False, B True)"),
        ("system_instruction", None, "Be brief.", "system (A none, B Be brief.)"),
    ],
)
def test_each_setting(tmp_path: Path, key: str, a: object, b: object, said: str) -> None:
    of_a, of_b = altered(tmp_path / "a", **{key: a}), altered(tmp_path / "b", **{key: b})
    assert differing_conditions(of_a, of_b) == f"the runs differ in {said}"


def test_a_setting_that_only_one_run_recorded(tmp_path: Path) -> None:
    a = read_run(FLOAT32)
    assert differing_conditions(a, altered(tmp_path / "none", quantization=None)) is None
    said = differing_conditions(a, altered(tmp_path / "some", quantization="Q4_1"))
    assert said == "the runs differ in quantization (A not recorded, B Q4_1)"


def test_settings_of_each_task_name_the_first_ones(tmp_path: Path) -> None:
    a, b = read_run(FLOAT32), altered(tmp_path / "b", dtype="bfloat16")
    b.results["n-shot"]["gsm8k"] = 8
    for task in QUESTIONS:
        b.results["n-samples"][task]["effective"] = 5
    said = differing_conditions(a, b)
    assert said is not None and said.startswith("the runs differ in dtype (A float32, B bfloat16)")
    assert "; number of examples (gsm8k: A 1, B 8); " in said
    assert said.endswith(
        "number of questions (arc_easy: A 10, B 5; hellaswag: A 8, B 5; piqa: A 12, B 5; "
        "and 2 more tasks)"
    )


def test_the_choice_of_questions_and_cut_contexts(tmp_path: Path) -> None:
    a, b = read_run(FLOAT32), altered(tmp_path / "b")
    for run, cut in ((a, 900), (b, 0)):
        run.results["truncated"] = {"gsm8k": cut, "piqa": 0}
    b.results["drawn"] = {
        "piqa": {"how": "drawn", "seed": 3, "ids": [4, 5]},
        "gsm8k": {"how": "first", "seed": None, "ids": [0, 1, 2]},
    }
    a.results["drawn"] = {"piqa": {"how": "drawn", "seed": 0, "ids": [1, 5]}}
    for run in (a, b):
        run.results["n-samples"]["gsm8k"] = {"original": 1319, "effective": 3}
    said = differing_conditions(a, b)
    assert said == (
        "the runs differ in choice of questions (piqa: A drawn with seed 0, B drawn with seed 3); "
        "cut contexts (gsm8k: A 900, B 0)"
    )
    del a.results["truncated"]
    a.results["lm_eval_version"], b.results["lm_eval_version"] = "0.4.8", "0.4.13"
    said = differing_conditions(a, b)
    assert said is not None and "version of lm-eval (A 0.4.8, B 0.4.13)" in said
    assert "cut contexts" not in said


def test_a_run_that_lm_eval_wrote_has_its_dtype(tmp_path: Path) -> None:
    other = altered(tmp_path / "b")
    del other.results["llama_fast"]
    other.results["config"] |= {"model_dtype": "torch.bfloat16", "max_length": 1024}
    said = differing_conditions(read_run(FLOAT32), other)
    expected = (
        "the runs differ in dtype (A float32, B bfloat16); max_length (A 8192, B 1024); "
        "preset (A llama2-paper, B none)"
    )
    assert said == expected


def test_the_terminal_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "compare", str(FLOAT32), str(BFLOAT16)]) == 0
    said = capsys.readouterr().out
    assert said.count("the runs differ in dtype (A float32, B bfloat16)") == 1
