"""What is the CUDA kernels' own: their ways for long rows, and when they serve at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import llama_fast
from llama_fast.ops.backends import cuda
from llama_fast.ops.backends.table import ops_of
from tests.ops.conftest import DEVICES, in_force
from tests.ops.criterion import check, served_by
from tests.ops.cross_entropy_cases import Case, runner
from tests.ops.test_cross_entropy_inputs import inplace

CUDA_OPS = ops_of("cuda")
RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"

here = pytest.mark.skipif(
    "cuda" not in llama_fast.backends().available["cross_entropy"],
    reason="needs a GPU, or LLAMA_FAST_EMULATE_CUDA=1",
)
on_gpu = [pytest.mark.gpu] if DEVICES["cuda"] != "cpu" else []


# An architecture (other ways for long rows) and an order of the threads; a GPU has its own.
@pytest.fixture(
    params=[pytest.param(p, marks=on_gpu) for p in ("80 shuffle", "90 reverse")]
    if cuda.EMULATED
    else [pytest.param("", marks=on_gpu)]
)
def cross_entropy_on_cuda(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    if request.param:
        arch, order = request.param.split()
        monkeypatch.setenv("LLAMA_FAST_EMULATE_CUDA", arch)
        monkeypatch.setenv("LLAMA_FAST_EMULATION_ORDER", order)
    with in_force("cross_entropy", "cuda"):
        yield


LONG_ROWS = [
    Case("one row, split over blocks", shape=(1, 128256)),
    Case("few rows of odd length", shape=(3, 50257), targets="some ignored"),
    Case("more rows than processors", shape=(8, 50257), class_weights=True),
    Case("rows for a cluster of two, every option", shape=(8, 40001), class_weights=True,
         targets="some ignored", options={"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0,
                                          "return_stats": True}),
    Case("long rows of probabilities", shape=(2, 100003), targets="probabilities",
         options={"reduction": "none"}),
    Case("long rows, weighted smoothing", shape=(2, 131072), class_weights=True,
         options={"label_smoothing": 0.2, "reduction": "sum"}),
    Case("long rows, classes first in memory", shape=(2, 9001, 3), targets="some ignored"),
]  # fmt: skip


@here
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", LONG_ROWS, ids=lambda c: c.id)
def test_long_rows(case: Case, dtype: torch.dtype, cross_entropy_on_cuda: None) -> None:
    check("cross_entropy", llama_fast.cross_entropy, runner(case), dtype)


@here
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("case", LONG_ROWS, ids=lambda c: c.id)
def test_long_rows_in_place(case: Case, dtype: torch.dtype, cross_entropy_on_cuda: None) -> None:
    formula = served_by("reference", "cross_entropy")
    check("cross_entropy", inplace, runner(case), dtype, formula=formula)


@here
def test_in_place_strides(cross_entropy_on_cuda: None) -> None:
    """Irregular dimensions behind the classes, and rows that begin at any address."""
    views = (
        lambda t: t[..., ::2, 1:4],
        lambda t: t.transpose(2, 3),
        lambda t: t[:, 1:8],
        lambda t: t[:1],
    )
    for view in views:
        leaf = torch.randn(3, 11, 4, 5, requires_grad=True)
        shape = view(leaf).shape
        target = torch.randint(0, shape[1], shape[:1] + shape[2:])
        options = {"label_smoothing": 0.1, "reduction": "sum"}
        results = []
        for logits in (view(leaf * 1), view(leaf).contiguous()):
            loss = llama_fast.cross_entropy(logits, target, **options, inplace=not results)
            results.append((loss, torch.autograd.grad(loss, leaf)[0]))
        for ours, same in zip(*results, strict=True):
            torch.testing.assert_close(ours, same)


@here
def test_float64_is_refused(cross_entropy_on_cuda: None) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"'cuda' of cross_entropy: .* got torch.float64"):
        llama_fast.cross_entropy(x, torch.zeros(3, dtype=torch.int64))


@here
def test_not_the_default_unless_verified() -> None:
    """Nobody gets a kernel that was not measured on his GPU without asking for it."""
    report = llama_fast.backends()
    for op in CUDA_OPS:
        if "cuda" in report.available[op] and not cuda.EMULATED:
            gpu = torch.cuda.get_device_name()
            verified = op in cuda.VERIFIED.get(gpu, ())
            assert ("cuda (unverified on this GPU)" in str(report)) != verified
    assert ("cuda (emulated on the CPU)" in str(report)) == cuda.EMULATED


def test_verified_kernels_have_a_run_to_show() -> None:
    for gpu, ops in cuda.VERIFIED.items():
        assert ops <= set(CUDA_OPS)
        assert any(gpu in file.read_text() for file in RESULTS.glob("*.json"))


def test_without_a_gpu_there_is_a_reason() -> None:
    missing = llama_fast.backends().missing
    for op in CUDA_OPS:
        if "cuda" in missing[op]:
            assert missing[op]["cuda"]
            refusal = pytest.raises(ValueError, match="backend 'cuda' cannot serve")
            with refusal, llama_fast.use_backend(**{op: "cuda"}):
                pass
