"""Choosing the implementation of an op."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import llama_fast
from llama_fast.ops.backends import current, library
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.table import OPS


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
        ({"attention": "cuda"}, "backend 'cuda' cannot serve attention: no CUDA kernel"),
        ({"swiglu": "chunked"}, "backend 'chunked' cannot serve swiglu: only linear_cross_entropy"),
    ],
    ids=str,
)
def test_bad_names(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"), llama_fast.use_backend(**arguments):
        pass


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_backend_for_every_tensor(op: str) -> None:
    report = llama_fast.backends()
    assert {"torch", "reference"} <= set(report.available[op])
    assert choose(op, attention_rows()) in report.available[op]
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


def test_two_threads_choose_for_themselves() -> None:
    """However their blocks overlap, and nothing is left behind."""
    before = llama_fast.backends().chosen
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen: dict[str, str] = {}

    def first() -> None:
        with llama_fast.use_backend(attention="reference"):
            first_in.set()
            assert second_in.wait(30)
            seen["first"] = current.chosen("attention")
        first_out.set()

    def second() -> None:
        assert first_in.wait(30)
        with llama_fast.use_backend(attention="torch"):
            second_in.set()
            assert first_out.wait(30)
            seen["second"] = current.chosen("attention")
        seen["after"] = current.chosen("attention")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"first": "reference", "second": "torch", "after": before["attention"]}
    assert llama_fast.backends().chosen == before == dict(current._traced)


def test_tasks_choose_for_themselves() -> None:
    async def task(backend: str) -> list[str]:
        seen = []
        with llama_fast.use_backend(rope=backend):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(current.chosen("rope"))
        return seen

    async def both() -> list[list[str]]:
        return await asyncio.gather(task("reference"), task("torch"))

    assert asyncio.run(both()) == [["reference"] * 3, ["torch"] * 3]
    assert llama_fast.backends().chosen == current.DEFAULT


CALLS = {
    "cross_entropy": lambda x: llama_fast.cross_entropy(x, torch.tensor([1, 2, 0])),
    "linear_cross_entropy": lambda x: llama_fast.linear_cross_entropy(
        x, torch.eye(4), torch.tensor([1, 2, 0]), reduction="none"
    ).sum(),
    "attention": lambda x: llama_fast.attention(*[x.view(1, 1, 3, 4)] * 3).square().sum(),
    "rms_norm": lambda x: llama_fast.rms_norm(x, torch.ones(4)).square().sum(),
    "swiglu": lambda x: llama_fast.swiglu(x, x).sum(),
}


@pytest.mark.skipif(library.missing_reason is not None, reason="nothing was compiled")
@pytest.mark.parametrize("op", CALLS)
def test_a_backward_uses_the_backend_of_its_forward(
    op: str,
) -> None:
    """It runs after the block, maybe in a thread of autograd's."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "llama_fast":
                seen.append(current.chosen(op))
            return func(*args, **(kwargs or {}))

    for mode_in_forward in (False, True):
        x = torch.randn(3, 4, requires_grad=True)
        with llama_fast.use_backend(**{op: "cpu"}), Watch() if mode_in_forward else nullcontext():
            loss = CALLS[op](x)
        seen.clear()
        with llama_fast.use_backend(**{op: "reference"}):
            thread = threading.Thread(target=lambda loss=loss: _backward_watched(loss, Watch))
            thread.start()
            thread.join()
        assert seen and set(seen) == {"cpu"}, (mode_in_forward, seen)
        assert x.grad is not None


def _backward_watched(loss: torch.Tensor, watch: type[TorchDispatchMode]) -> None:
    with watch():
        loss.backward()


@pytest.mark.compile
def test_compiled_code_notices_another_choice() -> None:
    graphs = []

    def look(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(str(graph.code))
        return graph.forward

    compiled = torch.compile(lambda x: llama_fast.swiglu(x, x), fullgraph=True, backend=look)
    x = torch.randn(2, 4)
    expected = compiled(x)
    with llama_fast.use_backend(swiglu="torch"):
        torch.testing.assert_close(compiled(x), expected)
    compiled(x)
    assert len(graphs) == 2 and ["llama_fast" in graph for graph in graphs] == [True, False]
