"""Keys and values of a batch of equally long sequences, in one piece of memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LlamaConfig


class KVCache:
    """Keys and values of the tokens seen so far, so that each new token costs one step.

    Args:
        config: of the model.
        batch: B.
        max_len: the most tokens it can hold; the memory for them is taken at once.
        dtype, device: those of the model.

    Attributes:
        length: number of tokens held.

    Example:
        >>> cache = KVCache(model.config, batch=1, max_len=128)
        >>> with torch.no_grad():
        ...     logits = model(prompt, cache=cache)        # all S tokens of the prompt
        ...     logits = model(next_token, cache=cache)    # then one at a time
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, max_len, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)  # (N,B,K,max_len,D)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_len(self) -> int:
        """The most tokens it can hold."""
        return self.k.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's k and v (B,K,S,D) after the tokens held; returns all, (B,K,T,D).

        ``length`` grows when the model has been through all its layers.
        """
        if k.requires_grad:
            raise ValueError(
                "cache: expected a call under torch.no_grad(), got tensors that need gradients "
                "(a KV cache is for inference)"
            )
        held = slice(self.length, self.length + k.shape[2])
        self.k[layer, :, :, held] = k
        self.v[layer, :, :, held] = v
        return self.k[layer, :, :, : held.stop], self.v[layer, :, :, : held.stop]
