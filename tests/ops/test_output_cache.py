"""Large outputs take over the memory of dead ones, and never that of live ones."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading

import pytest
import torch

import llama_fast
from llama_fast.ops.backends import library

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or library.missing_reason is not None,
        reason="needs Linux and a compiled library",
    ),
    pytest.mark.skipif(
        torch.torch_version.TorchVersion(torch.__version__) < (2, 11),
        reason="needs torch 2.11, which has tensors with a deleter",
    ),
]

MIB = 1 << 20


def output(mib: float, value: float = 1.0) -> torch.Tensor:
    """A tensor of that size, made by a kernel; its elements are silu(value) * value."""
    x = torch.full((int(mib * MIB) // 4,), value)
    return llama_fast.swiglu(x, x)


@pytest.fixture(autouse=True)
def _empty() -> None:
    llama_fast.empty_cache()


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_of_a_dead_tensor_serves_the_next() -> None:
    first = output(16)
    address = first.data_ptr()
    assert address % (2 * MIB) == 0  # where a huge page can lie
    view = first[5:]
    del first
    assert output(16).data_ptr() != address, "a view still uses it"
    llama_fast.empty_cache()
    del view
    assert output(15).data_ptr() == address
    assert output(8).data_ptr() != address, "too much would lie idle"


def test_live_tensors_keep_their_numbers() -> None:
    """Sizes and lifetimes at random, in several threads at once."""

    def work(seed: int) -> None:
        rng = random.Random(seed)
        alive: list[tuple[torch.Tensor, float]] = []
        for step in range(60):
            value = float(rng.randrange(1, 1000))
            alive.append((output(rng.choice((4, 5, 6, 9)), value), value))
            if len(alive) > 4:
                tensor, value = alive.pop(rng.randrange(len(alive)))
                assert (tensor == tensor[0]).all() and tensor[0] == value * value, step
                del tensor

    failures: list[BaseException] = []

    def guarded(seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_gradients_kept_across_steps_are_not_overwritten() -> None:
    logits = torch.randn(1024, 1100, requires_grad=True)
    target = torch.randint(1100, (1024,))
    kept = []
    for _ in range(3):
        (grad,) = torch.autograd.grad(llama_fast.cross_entropy(logits, target), logits)
        kept.append((grad, grad.clone()))
    for grad, copy in kept:
        assert grad.equal(copy)
    assert len({grad.data_ptr() for grad, _ in kept}) == 3


def test_empty_cache_returns_memory_to_the_system() -> None:
    assert llama_fast.empty_cache() == 0
    sizes = (64, 32)
    tensors = [output(mib) for mib in sizes]
    del tensors
    before = resident()
    assert llama_fast.empty_cache() == sum(sizes) * MIB
    assert before - resident() > 0.9 * sum(sizes) * MIB


def test_small_outputs_are_ordinary() -> None:
    first = output(1)
    assert first.untyped_storage().resizable()
    del first
    assert llama_fast.empty_cache() == 0


def run(limit: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLAMA_FAST_CACHE_MB": limit}
    # A sanitizer's library must come before everything else and slows the start: keep it as it is.
    return subprocess.run(
        [sys.executable, "-c", f"import torch, llama_fast\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_limit() -> None:
    code = (
        "x = torch.ones(4 << 20)\n"
        "outs = [llama_fast.swiglu(x, x) for _ in range(5)]\n"
        "del outs\n"
        "print(llama_fast.empty_cache() >> 20)"
    )
    assert run("40", code).stdout == "32\n"
    assert run("0", code).stdout == "0\n"


def test_bad_limit() -> None:
    assert "LLAMA_FAST_CACHE_MB: expected a whole number of MiB, got '1G'" in run("1G", "").stderr


def test_a_forked_process_has_its_own() -> None:
    """Also if another thread was inside the cache at the moment of the fork."""
    code = """
import os, threading
x = torch.ones(2 << 20)
stop = threading.Event()
def churn():
    while not stop.is_set():
        llama_fast.swiglu(x, x)
thread = threading.Thread(target=churn)
thread.start()
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        ok = all(bool((llama_fast.swiglu(x, x) == 0.7310585975646973).all()) for _ in range(3))
        os._exit(0 if ok else 1)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
thread.join()
print(codes == [0] * 20)
"""
    done = run("512", code)
    assert done.stdout == "True\n", done.stderr
