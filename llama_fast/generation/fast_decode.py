"""A decoding step of a :class:`LLaMA` on a CPU as one C++ operator.

It computes the same as ``hidden_states`` with a :class:`DecodeStep`, by the same kernels. In Python
a block takes 14 calls with an overhead of about 10 µs each, while reading the weights of a block of
SmolLM2-135M takes 300 µs.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from llama_fast._torch_internals import has_kernel
from llama_fast.models import LLaMA
from llama_fast.models.llama import rope_frequencies
from llama_fast.ops.backends.current import chosen
from llama_fast.ops.backends.library import library, own_error

from .paged_cache import DecodeStep

_NAME = "llama_fast::decode_layers"
_OPS = ("attention_decode", "rms_norm", "rope", "swiglu")
_MAX_HEADS = 8  # largest number of query heads that share keys and values
_PAGE_UNIT = 16


class FastDecode:
    """Calls the operator with the model's weights.

    Args:
        model: one that :meth:`serves` accepts. Its weights may change in place, but not be replaced
            (as ``model.to`` does).
    """

    def __init__(self, model: LLaMA) -> None:
        self._embedding = model.embedding.weight
        self._eps = model.config.rms_norm_eps
        self._frequencies = rope_frequencies(model.config, self._embedding.device)
        blocks = model.layers
        self._weights = [w.detach() for block in blocks for w in block.parameters()]
        self._weights.append(model.norm.weight.detach())

    @staticmethod
    def serves(model: object, page_size: int) -> TypeGuard[LLaMA]:
        """Whether the operator is available and takes this model and this page size."""
        if not (isinstance(model, LLaMA) and has_kernel(_NAME, "CPU")):
            return False
        weights = list(model.parameters())
        dtype, config = weights[0].dtype, model.config
        return (
            all(type(w) is torch.nn.Parameter and w.is_cpu and w.dtype == dtype for w in weights)
            and all(w.is_contiguous() for w in weights)
            and dtype in (torch.float32, torch.bfloat16, torch.float16)
            and config.num_heads // config.num_kv_heads <= _MAX_HEADS
            and page_size % _PAGE_UNIT == 0
            and all(chosen(op) in ("auto", "cpu") for op in _OPS)
        )

    def __call__(self, tokens: Tensor, step: DecodeStep) -> Tensor:
        """The normalised hidden states (1,B,E) of `tokens` (1,B)."""
        x = self._embedding[tokens[0]]  # (B,E)
        angles = step.positions.unsqueeze(1) * self._frequencies  # (B,D/2)
        cache = step.cache
        try:
            hidden: Tensor = torch.ops.llama_fast.decode_layers.default(
                x,
                self._weights,
                angles.cos().float(),
                angles.sin().float(),
                cache.k,
                cache.v,
                step.cached,
                step.table,
                cache.page_size,
                self._eps,
            )
        except RuntimeError as error:
            raise own_error(error) from None
        return hidden.unsqueeze(0)


@torch.library.register_fake(_NAME, lib=library)
def _shapes(x: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x)
