"""Attention over a cache: arguments that are converted, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import llama_fast


def test_autocast_converts_to_the_dtype_of_the_cache() -> None:
    cache = torch.zeros(1, 2, 8, 16, dtype=torch.float16)
    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 1, 16)
    held = torch.tensor([2], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        out = llama_fast.attention_decode(q, cache, cache.clone(), k=k, v=k, cache_seqlens=held)
    assert out.dtype == torch.float16
    assert torch.equal(cache[0, :, 2], k[0, :, 0].half())


Q, CACHE = torch.zeros(2, 4, 1, 8), torch.zeros(2, 2, 6, 8)
NEW, HELD = torch.zeros(2, 2, 1, 8), torch.zeros(2, dtype=torch.int32)
TABLE = torch.zeros(2, 3, dtype=torch.int32)
ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": 3}, TypeError, "q: expected a tensor, got int"),
    ({"q": Q[0]}, ValueError, r"q: expected shape \(B,H,S,D\), got \(4, 1, 8\)"),
    ({"q": Q.int()}, TypeError, "q: expected float64, .* got torch.int32"),
    ({"q": Q.half()}, TypeError, "k_cache: expected .* torch.float16, got torch.float32"),
    ({"q": Q[:, :3]}, ValueError, "k_cache: expected .* 3 heads of q, got 2"),
    ({"q": Q[..., :7]}, ValueError, "k_cache: expected .* 7, got 8"),
    ({"q": Q[:1], "cache_seqlens": HELD[:1]}, ValueError, "k_cache: expected .* 1, got 2"),
    ({"k_cache": CACHE[0]}, ValueError, "k_cache: expected shape .* got"),
    ({"v_cache": CACHE[:, :, :5]}, ValueError, "v_cache: expected .* got"),
    ({"v_cache": CACHE.to("meta")}, ValueError, "v_cache: expected .* cpu, got meta"),
    ({"k": NEW}, ValueError, "v: expected a tensor beside k, got None"),
    ({"v": NEW}, ValueError, "k: expected a tensor beside v, got None"),
    ({"k": NEW.double(), "v": NEW}, TypeError, "k: expected .* got torch.float64"),
    ({"k": NEW, "v": NEW[..., :3]}, ValueError, r"v: expected .*\(2, 2, 1, 8\), got \(2, 2, 1, 3"),
    ({"k": CACHE, "v": CACHE}, ValueError, r"k: expected .*\(2, 2, 1, 8\), got \(2, 2, 6, 8\)"),
    ({"cache_seqlens": 3}, TypeError, "cache_seqlens: expected a tensor of int32, got int"),
    ({"cache_seqlens": HELD.long()}, TypeError, "cache_seqlens: expected int32, got torch.int64"),
    ({"cache_seqlens": HELD[:1]}, ValueError, r"cache_seqlens: expected .*\(2,\), got \(1,\)"),
    ({"cache_seqlens": HELD.to("meta")}, ValueError, "cache_seqlens: expected .* got meta"),
    ({"page_table": TABLE.long()}, TypeError, "page_table: expected int32, got torch.int64"),
    ({"page_table": TABLE[0]}, ValueError, r"page_table: expected shape .* got \(3,\)"),
    ({"page_table": TABLE[:1]}, ValueError, "page_table: expected .* 2, got 1"),
    ({"scale": float("inf")}, ValueError, "scale: expected .* got inf"),
    ({"softcap": 0.0}, ValueError, "softcap: expected .* got 0.0"),
    ({"window": 0}, ValueError, "window: expected .* got 0"),
    ({"alibi_slopes": torch.zeros(3)}, ValueError, r"alibi_slopes: expected .* got \(3,\)"),
    ({"sinks": torch.zeros(2)}, ValueError, r"sinks: expected .*\(4,\), got \(2,\)"),
    ({"q": Q.clone().requires_grad_()}, ValueError, "q: expected .* without gradient"),
    ({"k": NEW, "v": NEW.clone().requires_grad_()}, ValueError, "v: expected .* without gradient"),
]


@pytest.mark.parametrize(("bad", "error", "message"), ERRORS, ids=str)
def test_errors(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"q": Q, "k_cache": CACHE, "v_cache": CACHE.clone(), "cache_seqlens": HELD}
    with pytest.raises(error, match=f"^{message}"):
        llama_fast.attention_decode(**(good | bad))
