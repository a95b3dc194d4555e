"""A decoding step of a :class:`LLaMA` on a CPU as one C++ operator.

What it computes is ``hidden_states`` with a :class:`DecodeStep`, by the same kernels. A block makes
14 calls that take about 10 µs each beside their work; the weights of a block of SmolLM2-135M are
read in 300 µs.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from llama_fast._torch_internals import has_kernel
from llama_fast.models import LLaMA
from llama_fast.models.llama import rope_frequencies
from llama_fast.ops.backends.current import chosen
from llama_fast.ops.backends.library import library

from .paged_cache import DecodeStep

_NAME = "llama_fast::decode_layers"
_OPS = ("attention_decode", "rms_norm", "rope", "swiglu")
_MOST_HEADS = 8  # of a group that shares keys and values
_PAGE_UNIT = 16


class FastDecode:
    """Calls the operator with the model's weights.

    Args:
        model: one that :meth:`serves` is true of. Its weights may change in place, but not be
            replaced, as ``model.to`` does.
    """

    def __init__(self, model: LLaMA) -> None:
        self._embedding = model.embedding.weight
        self._eps = model.config.rms_norm_eps
        self._frequencies = rope_frequencies(model.config, self._embedding.device)
        blocks = model.layers
        self._weights = [w.detach() for block in blocks for w in block.parameters()]
        self._weights.append(model.norm.weight.detach())

    @staticmethod
    def serves(model: object, page: int) -> TypeGuard[LLaMA]:
        """Whether the operator is there and takes this model, with pages of `page` tokens."""
        there = has_kernel(_NAME, "CPU")
        if not (isinstance(model, LLaMA) and there):
            return False
        weights = list(model.parameters())
        dtype, config = weights[0].dtype, model.config
        return (
            all(type(w) is torch.nn.Parameter and w.is_cpu and w.dtype == dtype for w in weights)
            and all(w.is_contiguous() for w in weights)
            and dtype in (torch.float32, torch.bfloat16, torch.float16)
            and config.num_heads // config.num_kv_heads <= _MOST_HEADS
            and page % _PAGE_UNIT == 0
            and all(chosen(op) in ("auto", "cpu") for op in _OPS)
        )

    def __call__(self, tokens: Tensor, step: DecodeStep) -> Tensor:
        """What the head reads (1,B,E), normalised, after each of `tokens` (1,B)."""
        x = self._embedding[tokens[0]]  # (B,E)
        angles = step.positions.unsqueeze(1) * self._frequencies  # (B,D/2)
        cache = step.cache
        found: Tensor = torch.ops.llama_fast.decode_layers.default(
            x,
            self._weights,
            angles.cos().float(),
            angles.sin().float(),
            cache.k,
            cache.v,
            step.held,
            step.table,
            cache.page,
            self._eps,
        )
        return found.unsqueeze(0)


@torch.library.register_fake(_NAME, lib=library)
def _shapes(x: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x)
