"""llama_fast.info says what is true of this machine and this installation."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llama_fast
from build_isas import HERE, ISAS, OTHERS
from llama_fast import info


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return info.collect()


def test_versions(facts: dict[str, Any]) -> None:
    versions = facts["versions"]
    assert versions["llama_fast"] == llama_fast.__version__
    assert versions["torch"] == torch.__version__
    assert versions["python"] == platform.python_version()


def test_every_op_has_a_backend_and_a_reason_for_each_that_is_missing(
    facts: dict[str, Any],
) -> None:
    assert set(facts["backends"]) >= {"attention", "cross_entropy", "rms_norm", "rope", "swiglu"}
    for row in facts["backends"].values():
        assert "reference" in row["available"]
        assert all(reason for reason in row["missing"].values())
        assert not set(row["missing"]) & set(row["available"])


def test_instruction_set_in_use_is_one_the_processor_has(facts: dict[str, Any]) -> None:
    used, features = facts["cpu"]["instruction_set"], facts["cpu"]["features"]
    assert used in (*ISAS.get(HERE, OTHERS), "none")
    needs = {"avx2": "avx2", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}
    needs |= {"neon": "neon", "neon_bf16": "bf16"}
    if features is not None and used in needs:
        assert needs[used] in features
    assert facts["cpu"]["torch_threads"] == torch.get_num_threads()


def test_text_and_json_hold_the_same_facts(facts: dict[str, Any]) -> None:
    assert json.loads(info.as_json(facts)) == facts
    text = info.as_text(facts)
    for section in ("versions", "build", "cpu"):
        for name in facts[section]:
            assert name in text
    assert facts["cpu"]["model"] in text
    for op, row in facts["backends"].items():
        assert op in text and all(reason in text for reason in row["missing"].values())


@pytest.mark.parametrize("width", [100, 60, 30])
def test_lines_of_a_terminal_end_between_words(facts: dict[str, Any], width: int) -> None:
    whole, folded = info.as_text(facts), info.as_text(facts, width)
    assert folded.split() == whole.split()
    for line in folded.splitlines():
        assert len(line) <= width or len(line.split()) == 1  # a word that is longer by itself


def test_module_runs_with_a_forced_instruction_set(tmp_path: Path) -> None:
    def run(isa: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "llama_fast.info", "--json"],
            env={**os.environ, "LLAMA_FAST_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    lowest = next(iter(ISAS.get(HERE, OTHERS)))
    forced = run(lowest)
    assert forced["cpu"]["instruction_set"] in (lowest, "none")  # none: nothing compiled
    assert forced["environment"]["LLAMA_FAST_ISA"] == lowest
