"""Attention: output, log-sum-exp and every gradient, over head sizes, lengths and head groups."""

import pytest
import torch

import llama_fast
from tests.ops.attention_cases import Case, runner
from tests.ops.criterion import DTYPES, check

OP = "attention"

HEAD_SIZES = [
    Case("head size 1: less than any vector register", D=1),
    Case("head size 3: odd, and no multiple of anything", D=3),
    Case("head size 8: one AVX2 register of float32", D=8, S=9, T=20),
    Case("head size 40: Stable Diffusion, no power of two", D=40),
    Case("head size 64: the most common one", D=64, S=33, T=65),
    Case("head size 80: Phi-2, OpenLLaMA 3B, no multiple of 32", D=80),
    Case("head size 96: Phi-3, no power of two", D=96),
    Case("head size 128: Llama", D=128, S=40, T=40, options={"causal": True}),
    Case("head size 160: the largest of Stable Diffusion", D=160),
    Case("head size 192: DeepSeek's query and key", D=192, Dv=128),
    Case("head size 256: Gemma, the limit of many kernels", D=256),
    Case("head size 512: the largest promised", D=512, B=1),
    Case("value size below head size, and odd", D=64, Dv=5),
    Case("value size above head size", D=8, Dv=72),
    Case("value size 1", D=16, Dv=1),
]

LENGTHS = [
    Case("one query, one key: softmax of one number", S=1, T=1),
    Case("one query, many keys: decoding with a cache", S=1, T=300, options={"causal": True}),
    Case("many queries, one key", S=70, T=1),
    Case("two queries, causal: the smallest triangle", S=2, T=2, options={"causal": True}),
    Case("lengths one below a tile", S=63, T=63, options={"causal": True}),
    Case("lengths of exactly one tile", S=64, T=64, options={"causal": True}),
    Case("lengths one above a tile", S=65, T=129, options={"causal": True}),
    Case("more keys than queries, causal: chunked prefill", S=20, T=150, options={"causal": True}),
    Case("more queries than keys, causal: rows that see nothing", S=50, T=20,
         options={"causal": True}, grad_lse=True),
    Case("many tiles in both directions", B=1, S=200, T=300, D=32),
    Case("many tiles, causal", B=1, S=300, T=300, D=32, options={"causal": True}),
    Case("batch of one, one head", B=1, H=1, K=1),
    Case("more batch entries than threads times anything", B=13, H=1, K=1, S=3, T=5),
]  # fmt: skip

HEADS = [
    Case("multi-query: one key head for all", H=6, K=1, options={"causal": True}),
    Case("grouped-query, groups of 2", H=4, K=2, options={"causal": True}),
    Case("grouped-query, groups of 3: SmolLM2", H=9, K=3, D=64, S=40, T=40),
    Case("grouped-query, groups of 8, one query: Llama 3 decoding", H=16, K=2, S=1, T=90),
    Case("grouped-query with unequal lengths and value size", H=4, K=2, S=5, T=37, Dv=7),
]

SCORES = [
    Case("a scale of its own", options={"scale": 0.3}),
    Case("scale 0: all keys weigh the same", options={"scale": 0.0}),
    Case("negative scale", options={"scale": -0.5}),
    Case("scores near 1e4: their exp overflows", options={"scale": 2500.0}, grad_lse=True),
    Case("one query, scores near 80: rounded alike forward and backward", S=1, T=200, D=64,
         options={"scale": 10.0}, grad_lse=True),
    Case("two queries, scores near 80", S=2, T=200, D=64, options={"scale": 10.0}),
    Case("four queries of two heads a group, scores near 500", H=4, K=2, S=4, T=150, D=40,
         options={"scale": 80.0}),
    Case("eight queries, scores near 8000", S=8, T=200, D=64, options={"scale": 1000.0}),
    Case("nine queries, scores near 8000", S=9, T=200, D=64, options={"scale": 1000.0}),
    Case("softcap that bites: Gemma 2", options={"softcap": 0.7}),
    Case("softcap, causal, grouped", H=4, K=2, options={"softcap": 2.0, "causal": True}),
    Case("log-sum-exp and its gradient", grad_lse=True),
    Case("log-sum-exp, causal, grouped, many tiles", B=1, H=4, K=2, S=140, T=150, grad_lse=True,
         options={"causal": True}),
    Case("log-sum-exp of capped scores", options={"softcap": 1.5}, grad_lse=True),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", HEAD_SIZES + LENGTHS + HEADS + SCORES, ids=lambda c: c.id)
def test_grid(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.attention, runner(case), dtype)


@pytest.mark.parametrize("options", ({}, {"softcap": 1e4}, {"softcap": 3e4}), ids=str)
@pytest.mark.parametrize("queries", (1, 8, 9, 31))
def test_large_scores_are_rounded_alike_forward_and_backward(
    queries: int, options: dict[str, float], backend: str
) -> None:
    """One visible key: its probability is one, to the last digits, in the gradient of v too."""
    for D in (4, 64, 65):
        for T in (1, 3, 39):
            q, k = 1e4 * torch.randn(1, 1, queries, D), torch.randn(1, 1, T, D)
            v = torch.randn(1, 1, T, 4, requires_grad=True)
            mask = torch.zeros(1, 1, queries, T, dtype=torch.bool)
            mask[..., 0] = True
            out = llama_fast.attention(q, k, v, bias=mask, **options)
            (grad,) = torch.autograd.grad(out.sum(), v)
            expected = torch.full((4,), float(queries))
            torch.testing.assert_close(grad[0, 0, 0], expected, rtol=2e-7 * queries, atol=0)
