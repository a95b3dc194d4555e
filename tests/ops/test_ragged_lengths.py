"""One long sequence among short ones: what it gives, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llama_fast

LENGTHS = torch.tensor([0, 1, 300, 5, 2100, 0, 512, 513], dtype=torch.int32)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("causal", (False, True))
def test_packed_sequences_are_as_they_are_alone(causal: bool, dtype: torch.dtype) -> None:
    k, v = torch.randn(2, int(LENGTHS.sum()), 2, 64).to(dtype)
    queries = torch.tensor([1, 0, 2, 1, 2, 1, 2, 1], dtype=torch.int32)
    q = torch.randn(int(queries.sum()), 4, 64).to(dtype)
    cu_q, cu_k = (torch.nn.functional.pad(n.cumsum(0), (1, 0)).int() for n in (queries, LENGTHS))
    together = llama_fast.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=causal)
    for b in range(len(LENGTHS)):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        ends = (torch.tensor([0, n[b]], dtype=torch.int32) for n in (queries, LENGTHS))
        alone = llama_fast.attention(
            q[rows], k[keys], v[keys], causal=causal,
            **dict(zip(("cu_seqlens_q", "cu_seqlens_k"), ends, strict=True)),
        )  # fmt: skip
        assert torch.equal(together[rows], alone)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("paged", (False, True))
def test_cached_sequences_are_as_they_are_alone(paged: bool, dtype: torch.dtype) -> None:
    B, K, T, D, page = len(LENGTHS), 2, 2112, 64, 64
    k, v = torch.randn(2, B, K, T, D).to(dtype)
    table = None
    if paged:
        k, v = (
            t.unflatten(2, (T // page, page)).transpose(1, 2).flatten(0, 1).contiguous()
            for t in (k, v)
        )
        table = torch.arange(B * T // page, dtype=torch.int32).view(B, -1)
    q = torch.randn(B, 4, 1, D).to(dtype)
    together = llama_fast.attention_decode(q, k, v, cache_seqlens=LENGTHS, page_table=table)
    for b in range(B):
        one = slice(b, b + 1)
        alone = llama_fast.attention_decode(
            q[one], *((k, v) if paged else (k[one], v[one])),
            cache_seqlens=LENGTHS[one], page_table=None if table is None else table[one],
        )  # fmt: skip
        assert torch.equal(together[one], alone)


PEAK = """
import torch, llama_fast
lengths = torch.tensor([1] * 255 + [65536], dtype=torch.int32)
cu_q, cu_k = torch.arange(257), torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
k, v = torch.randn(2, int(cu_k[-1]), 1, 64)
q = torch.randn(256, 8, 64)
llama_fast.attention(q[:2], k[:2], v[:2], cu_seqlens_q=cu_q[:3], cu_seqlens_k=cu_k[:3])
def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
llama_fast.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
print(resident("VmHWM") - before)
"""


def test_memory_is_that_of_the_keys_there_are() -> None:
    """The sums of each 512 keys: 0.8 MB for these, 67 MB if all were as long as the longest."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    if "cpu" not in llama_fast.backends().available["attention"]:
        pytest.skip(llama_fast.backends().missing["attention"]["cpu"])
    child = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(child.stdout) < 20_000
