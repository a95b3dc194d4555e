"""A Llama model written out a second time, in float64, with nothing of the package under test.

It takes weights by Hugging Face's names. Everything is spelled out head by head; RoPE turns complex
numbers. Slow, and as close to the formulas as can be: the truth in the tests of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llama_fast.models import LlamaConfig


def logits(
    config: LlamaConfig,
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    hidden: Tensor | None = None,
    interleaved: bool = False,
) -> Tensor:
    """tokens (B,S) -> logits (B,S,V), float64.

    `hidden` (S,S) bool: what no query may see besides later tokens. `interleaved`: query and key
    rows are in Meta's order.
    """
    w = {name: weight.double() for name, weight in weights.items()}
    return torch.stack([_one(config, w, row, hidden, interleaved) for row in tokens])


def _one(
    config: LlamaConfig,
    w: Mapping[str, Tensor],
    tokens: Tensor,
    hidden: Tensor | None,
    interleaved: bool,
) -> Tensor:
    S, D = len(tokens), config.head_dim
    group = config.num_heads // config.num_kv_heads
    future = torch.ones(S, S, dtype=torch.bool).triu(1)
    hidden = future if hidden is None else future | hidden
    turn = torch.polar(
        torch.ones(S, D // 2, dtype=torch.float64),
        torch.outer(torch.arange(S).double(), frequencies(config)),
    )

    def rotate(x: Tensor) -> Tensor:  # (S,D)
        pairs = x.reshape(S, D // 2, 2) if interleaved else x.reshape(S, 2, D // 2).mT
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
        return turned.reshape(S, D) if interleaved else turned.mT.reshape(S, D)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * w[name]

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        y = norm(x, f"{layer}.input_layernorm.weight")
        q, k, v = (y @ w[f"{layer}.self_attn.{n}_proj.weight"].T for n in "qkv")
        heads = []
        for h in range(config.num_heads):
            own, shared = slice(h * D, (h + 1) * D), slice(h // group * D, (h // group + 1) * D)
            scores = rotate(q[:, own]) @ rotate(k[:, shared]).T / math.sqrt(D)
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, shared])
        x = x + torch.cat(heads, dim=-1) @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate, up = (y @ w[f"{layer}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
    return norm(x, "model.norm.weight") @ w[head].T


def frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position, pair by pair, as the Llama 3.1 reference code has it."""
    result = []
    for d in range(config.head_dim // 2):
        frequency = config.rope_theta ** (-2 * d / config.head_dim)
        if config.rope_factors is not None:
            frequency /= config.rope_factors[d]
        if (s := config.rope_scaling) is not None:
            wavelength = 2 * math.pi / frequency
            original = s.original_max_position_embeddings
            if wavelength > original / s.low_freq_factor:
                frequency /= s.factor
            elif wavelength >= original / s.high_freq_factor:
                smooth = original / wavelength - s.low_freq_factor
                smooth /= s.high_freq_factor - s.low_freq_factor
                frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
        result.append(frequency)
    return torch.tensor(result, dtype=torch.float64)
