"""Code written for flash-attn runs when its import is changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.integrations.flash_attn_formula import draw, exactly, offsets

# As flash-attn's users write it; the first line is the one they change.
MODULE = """
from llama_fast import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

class Attention(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, max_len):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wqkv = nn.Linear(dim, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        angles = torch.outer(torch.arange(max_len), 0.3 ** torch.arange(self.head_dim // 2))
        self.cos, self.sin = angles.cos(), angles.sin()

    def split(self, x):
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))
        return qkv.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=-2)

    def forward(self, x):
        out = flash_attn_func(*self.split(x), causal=True)
        return self.wo(out.flatten(-2))

    def forward_packed(self, x, cu_seqlens, max_seqlen):
        q, k, v = self.split(x)
        out = flash_attn_varlen_func(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, causal=True)
        return self.wo(out.flatten(-2))

    def decode(self, x, k_cache, v_cache, cache_seqlens):
        q, k, v = self.split(x)
        out = flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, rotary_cos=self.cos, rotary_sin=self.sin,
            cache_seqlens=cache_seqlens, causal=True)
        return self.wo(out.flatten(-2))
"""


def test_a_module_written_for_flash_attn():
    names: dict[str, Any] = {"nn": nn, "torch": torch}
    exec(MODULE, names)
    torch.manual_seed(0)
    module = names["Attention"](32, 4, 2, 16).double()
    x = draw(2, 6, 32)

    def stock(x):
        q, k, v = (t.transpose(1, 2) for t in module.split(x))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return module.wo(out.transpose(1, 2).flatten(-2))

    exactly(module(x), stock(x))
    module(x).square().sum().backward()
    made = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    stock(x).square().sum().backward()
    for grad, p in zip(made, module.parameters(), strict=True):
        exactly(grad, p.grad)
    packed = module.forward_packed(x.flatten(0, 1), offsets((6, 6)), 6)
    exactly(packed.unflatten(0, (2, 6)), module(x))

    whole, steps = ([torch.zeros(2, 16, 2, 8, dtype=x.dtype) for _ in range(2)] for _ in range(2))
    lengths = torch.zeros(2, dtype=torch.int32)
    at_once = module.decode(x, *whole, lengths)
    for t in range(6):
        one = module.decode(x[:, t : t + 1], *steps, lengths)
        exactly(one, at_once[:, t : t + 1])
        lengths += 1
    exactly(steps, whole)
    assert not torch.equal(at_once, module(x))  # the rotation
