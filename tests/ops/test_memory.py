"""Memory that runs out, or could never be: an error that says so, in a process that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch

import llama_fast
from llama_fast.ops.backends import library

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or library.missing_reason is not None,
    reason="needs Linux and a compiled library",
)

ops = torch.ops.llama_fast
ONE, TARGET = torch.zeros(1), torch.zeros(1, dtype=torch.int64)


def wide(*shape: int) -> torch.Tensor:
    return ONE.expand(shape)


# The byte counts of the first are 2**64 and a little: they look like small ones.
ABSURD: dict[str, Callable[[], object]] = {
    "swiglu": lambda: llama_fast.swiglu(wide(2**42 + 1, 2**20), wide(2**42 + 1, 2**20)),
    "swiglu backward": lambda: ops.swiglu_backward(*[wide(2**42 + 1, 2**20)] * 3, 3),
    "rms_norm": lambda: llama_fast.rms_norm(wide(2**42 + 1, 2**20), wide(2**20)),
    "rms_norm of one row": lambda: llama_fast.rms_norm(wide(1, 2**61), wide(2**61)),
    "rms_norm of no row": lambda: ops.rms_norm_backward(
        wide(0, 2**61), None, wide(0, 2**61), wide(2**61), torch.zeros(0), 1e-6, 0.0, 3
    ),
    "rope": lambda: llama_fast.rope(
        *[wide(2**42 + 1, 1, 2**10, 2**10)] * 2, *[wide(2**10, 2**9)] * 2
    ),
    "linear": lambda: ops.linear(wide(2**42 + 1, 1), wide(2**20, 1), None),
    "attention": lambda: llama_fast.attention(
        *[wide(2**42 + 1, 1, 2**8, 2**12)] + [wide(2**42 + 1, 1, 1, 2**12)] * 2
    ),
    "attention of one long row": lambda: llama_fast.attention(*[wide(1, 1, 1, 2**61)] * 3),
    "attention_decode": lambda: llama_fast.attention_decode(
        wide(1, 1, 1, 2**60), *[wide(1, 1, 4, 2**60)] * 2,
        cache_seqlens=torch.ones(1, dtype=torch.int32),
    ),
    "cross_entropy": lambda: llama_fast.cross_entropy(
        wide(2**42 + 1, 2**20), TARGET.expand(2**42 + 1), reduction="none"
    ),
    "cross_entropy of one row": lambda: llama_fast.cross_entropy(wide(1, 2**61), wide(1, 2**61)),
    "linear_cross_entropy": lambda: ops.linear_cross_entropy(
        wide(2**42 + 1, 8), wide(7, 8), TARGET.expand(2**42 + 1), *[None] * 3, -100, 1, 0.0, 0.0,
        0.0, False, 7,
    ),
    "linear_cross_entropy, classes": lambda: ops.linear_cross_entropy(
        wide(1, 1), wide(2**60, 1), TARGET, *[None] * 3, -100, 1, 0.0, 0.0, 0.0, False, 7
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", ABSURD.values(), ids=ABSURD)
def test_absurd_shapes_are_an_error(call: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match=r"not enough memory|2\^48 elements"):
        call()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LLAMA_FAST_CACHE_MB": "512", **environment},
        capture_output=True,
        text=True,
    )


LIMITED = """
import resource, torch, llama_fast
from llama_fast._out_of_memory import is_out_of_memory
MIB = 1 << 20
def output(mib):
    x = torch.ones(256).expand(mib * 1024, 256)  # only the result takes memory
    return torch.ops.llama_fast.swiglu(x, x)
llama_fast.swiglu(torch.ones(8), torch.ones(8))
torch.set_num_threads(1)
def limit(mib):
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mib * MIB, -1))
"""


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 11),
    reason="needs torch 2.11, which has tensors with a deleter",
)
def test_idle_blocks_are_given_up_before_an_allocation_fails() -> None:
    code = (
        LIMITED
        + """
limit(500)
idle = [output(102) for _ in range(4)]  # 408 MiB
del idle
assert output(300).sum() > 0
idle = [output(102) for _ in range(4)]
del idle
# Working memory too: a row of probabilities in float32, 160 MiB.
row = torch.ones(1, 1).expand(1, 40 * MIB)
print(torch.ops.llama_fast.cross_entropy(
    row, row, None, -100, 1, 0.0, 0.0, 0.0, False)[1].item() > 0)
"""
    )
    done = run(code)
    assert done.stdout == "True\n", done.stderr


def test_what_does_not_fit_is_recognised_whatever_its_size() -> None:
    """Outputs that the cache serves, small ones, copies of strided inputs, working memory."""
    code = (
        LIMITED
        + """
import re
limit(600)
calls = {
    "output": lambda n: output(n),
    "small outputs": lambda n: [output(2) for _ in range(n // 2)],
    "copy": lambda n: torch.ops.llama_fast.linear(
        torch.ones(1, 1).expand(n * MIB // 16, 4), torch.ones(1, 4), None),
    "scratch": lambda n: torch.ops.llama_fast.cross_entropy(
        *[torch.ones(1, 1).expand(1, n * MIB // 4)] * 2, None, -100, 1, 0.0, 0.0, 0.0, False),
    "gradients": lambda n: torch.ops.llama_fast.rms_norm_backward(
        *[None if i == 1 else torch.ones(1, 1).expand(n * MIB // 64, 16) for i in range(3)],
        torch.ones(16), torch.ones(1).expand(n * MIB // 64), 1e-6, 0.0, 1),
}
for name, call in calls.items():
    seen = 0
    for size in range(100, 1300, 100):
        try:
            call(size)
        except (RuntimeError, MemoryError) as error:
            seen += 1
            assert is_out_of_memory(error), (name, size, error)
            asked = re.search(r"tried to allocate ([\\d.]+) (bytes|KiB|MiB|GiB)", str(error))
            assert asked, (name, size, error)
    assert seen >= 5, (name, seen)
print("every one")
"""
    )
    done = run(code)
    assert done.stdout == "every one\n", done.stderr


def test_empty_cache_in_a_forked_process() -> None:
    """Another thread may hold any lock at the moment of the fork."""
    code = """
import os, threading, torch, llama_fast
x = torch.ones(2 << 20)
stop = threading.Event()
def churn():
    while not stop.is_set():
        llama_fast.swiglu(x, x)
        llama_fast.empty_cache()
threads = [threading.Thread(target=churn) for _ in range(3)]
torch.set_num_threads(1)
for thread in threads:
    thread.start()
codes = []
for _ in range(60):
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(20)  # ends a child that hangs
        out = llama_fast.swiglu(x, x)
        del out
        llama_fast.empty_cache()
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
print(codes == [0] * 60)
"""
    done = run(code)
    assert done.stdout == "True\n", done.stderr


def test_empty_cache_frees_the_scratch_of_idle_threads() -> None:
    llama_fast.empty_cache()
    row = torch.ones(1, 1).expand(1, 20 << 20)  # as probabilities: 80 MiB of scratch
    done, end = threading.Event(), threading.Event()

    def work() -> None:
        torch.set_num_threads(1)
        ops.cross_entropy(row, row, None, -100, 1, 0.0, 0.0, 0.0, False)
        done.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert done.wait(60)
        assert llama_fast.empty_cache() >= 80 << 20
        assert llama_fast.empty_cache() == 0
    finally:
        end.set()
        thread.join()
    ops.cross_entropy(row, row, None, -100, 1, 0.0, 0.0, 0.0, False)  # and this thread's
    assert llama_fast.empty_cache() >= 80 << 20


def test_scratch_in_use_is_left_alone() -> None:
    """One thread empties the cache without end while others compute."""
    stop = threading.Event()

    def empty() -> None:
        while not stop.is_set():
            llama_fast.empty_cache()

    q, k, v = (torch.randn(1, 2, 200, 32) for _ in range(3))
    x, w, y = torch.randn(64, 32), torch.randn(500, 32), torch.randint(500, (64,))
    expected = llama_fast.attention(q, k, v), llama_fast.linear_cross_entropy(x, w, y)
    thread = threading.Thread(target=empty)
    thread.start()
    try:
        for _ in range(60):
            assert torch.equal(llama_fast.attention(q, k, v), expected[0])
            assert torch.equal(llama_fast.linear_cross_entropy(x, w, y), expected[1])
    finally:
        stop.set()
        thread.join()


SMALL_STACK = """
import sys, threading, torch, llama_fast
torch.set_num_threads(2)
def work():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        q, k = (torch.randn(1, 4, n, 128, dtype=dtype, requires_grad=True) for n in (130, 300))
        llama_fast.attention(q, k, k, causal=True).sum().backward()
        x = torch.randn(300, 600, dtype=dtype, requires_grad=True)
        w = torch.randn(1500, 600, dtype=dtype, requires_grad=True)
        y = torch.randint(1500, (300,))
        llama_fast.linear_cross_entropy(x, w, y, label_smoothing=0.1).backward()
        llama_fast.cross_entropy(x @ w.T, y, label_smoothing=0.1).backward()
        y, total = llama_fast.rms_norm(x, torch.ones(600, dtype=dtype), residual=x)
        (llama_fast.swiglu(y, total)).sum().backward()
    print("done")
threading.stack_size(int(sys.argv[1]) << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_small_stacks_are_enough() -> None:
    """Of OpenMP's threads and of Python's: 256 KiB, of which torch's autograd takes its part."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACK, "256"],
        env={**os.environ, "OMP_STACKSIZE": "256k"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n" and done.returncode == 0, done.stderr
