"""Choosing the implementation of an op."""

import os
import subprocess
import sys

import pytest
import torch

import llama_fast
from llama_fast.ops import _backend


def attention_rows() -> torch.Tensor:
    return torch.zeros(1, 1, 1, 8)


def test_use_backend_holds_inside_the_block_only() -> None:
    before = llama_fast.backends().chosen
    with llama_fast.use_backend(attention="reference", cross_entropy="torch"):
        inside = llama_fast.backends().chosen
        assert (inside["attention"], inside["cross_entropy"]) == ("reference", "torch")
        assert inside["swiglu"] == before["swiglu"]
        with llama_fast.use_backend("torch", attention="reference"):
            assert llama_fast.backends().chosen["rope"] == "torch"
            assert llama_fast.backends().chosen["attention"] == "reference"
        assert llama_fast.backends().chosen == inside
    assert llama_fast.backends().chosen == before


def test_use_backend_is_undone_after_an_error() -> None:
    before = llama_fast.backends().chosen
    with pytest.raises(KeyError), llama_fast.use_backend("reference"):
        raise KeyError
    assert llama_fast.backends().chosen == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "fast"}, "backend: expected one of auto, cpu, .* got 'fast'"),
        ({"attention": "fast"}, "backend for attention: expected one of .* got 'fast'"),
        ({"attend": "cpu"}, "op: expected one of attention, .* got 'attend'"),
        ({"attention": "cuda"}, "backend 'cuda' cannot serve attention: no cuda kernel"),
        ({"swiglu": "chunked"}, "backend 'chunked' cannot serve swiglu: only linear_cross_entropy"),
    ],
    ids=str,
)
def test_bad_names(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"), llama_fast.use_backend(**arguments):
        pass


@pytest.mark.parametrize("op", _backend.OPS)
def test_every_op_has_a_backend_for_every_tensor(op: str) -> None:
    report = llama_fast.backends()
    assert {"torch", "reference"} <= set(report.available[op])
    assert _backend.choose(op, attention_rows()) in report.available[op]
    assert op in str(report)
    for reason in report.missing[op].values():
        assert reason and reason in str(report)


def test_chosen_backend_runs() -> None:
    """Which implementation ran shows in what it can do."""
    q = attention_rows()
    with llama_fast.use_backend(attention="torch"), pytest.raises(ValueError, match="return_lse"):
        llama_fast.attention(q, q, q, return_lse=True)
    llama_fast.attention(q, q, q, return_lse=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("reference", {"attention": "reference", "swiglu": "reference"}),
        ("attention=reference,cross_entropy=torch",
         {"attention": "reference", "cross_entropy": "torch", "swiglu": "auto"}),
        ("", {"attention": "auto"}),
    ],
)  # fmt: skip
def test_environment(value: str, expected: dict[str, str]) -> None:
    script = "import llama_fast; print(llama_fast.backends().chosen)"
    printed = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "LLAMA_FAST_BACKEND": value},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for op, name in expected.items():
        assert f"'{op}': '{name}'" in printed


def test_environment_with_a_bad_name() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import llama_fast"],
        env={**os.environ, "LLAMA_FAST_BACKEND": "quick"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode != 0 and "expected one of auto, cpu," in run.stderr
