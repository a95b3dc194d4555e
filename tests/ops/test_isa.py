"""Every instruction set that was compiled and that this processor runs: the grid, once each."""

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import llama_fast
from build_isas import HERE, ISAS, OTHERS
from llama_fast.ops.backends import library

COMPILED = "cpu" in llama_fast.backends().available["attention"]
REPOSITORY = Path(__file__).parents[2]
SETS = tuple(ISAS.get(HERE, OTHERS))
GRID = ["tests/ops/test_attention.py", "tests/ops/test_attention_masks.py::test_masks",
        "tests/ops/test_cross_entropy.py::test_options",
        "tests/ops/test_cross_entropy.py::test_shapes",
        "tests/ops/test_cross_entropy_inputs.py::test_inplace",
        *(f"tests/ops/test_{op}.py" for op in ("rms_norm", "rope", "swiglu")),
        "tests/ops/test_linear_cross_entropy.py::test_grid",
        "tests/ops/test_determinism.py"]  # fmt: skip


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLAMA_FAST_ISA": isa}
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


# All other tests run on the best.
@pytest.mark.parametrize("isa", [isa for isa in SETS if COMPILED and isa != library.isa()])
def test_grid(isa: str) -> None:
    probe = run(isa, "-c", "from llama_fast.ops.backends import library; print(library.isa())")
    if probe.returncode:
        reason = probe.stderr.strip().splitlines()[-1]
        assert "LLAMA_FAST_ISA" in reason, probe.stderr
        pytest.skip(f"needs a processor with {isa}: {reason}")
    assert probe.stdout.strip() == isa
    # One dtype of each width: they differ in how numbers are loaded and multiplied. The backends
    # written in torch's operations have no instruction sets.
    chosen = ("-k", "not torch.float64 and not torch.float16 and not chunked and not reference")
    tests = run(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen, *GRID)
    assert tests.returncode == 0, tests.stdout[-5000:]


def test_unknown_instruction_set_is_an_error() -> None:
    if not COMPILED:
        pytest.skip(llama_fast.backends().missing["attention"]["cpu"])
    probe = run("sse9", "-c", "from llama_fast.ops.backends import library; print(library.isa())")
    assert probe.returncode != 0
    found = re.search(r"LLAMA_FAST_ISA: expected one of (.*), got sse9", probe.stderr)
    assert found, probe.stderr
    # Best first: the reverse of the order in which the build lists what it compiled.
    built = json.loads(resources.files(llama_fast).joinpath("_build.json").read_text())
    assert found[1].split(", ") == built["instruction_sets"][::-1]


def test_names_of_instruction_sets_are_the_same_everywhere() -> None:
    names = [name for sets in ISAS.values() for name in sets]
    assert all(re.search(rf"\b{name}\b", str(library.__doc__)) for name in names)
