"""A contiguous key-value cache for a batch of sequences of equal length."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LlamaConfig


class KVCache:
    """Stores keys and values of earlier tokens, so that only those of new tokens are computed.

    Args:
        config: configuration of the model.
        batch: B, number of sequences.
        max_len: capacity in tokens, allocated at once.
        dtype, device: dtype and device of the model.

    Attributes:
        length: number of cached tokens.

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
        """Capacity in tokens."""
        return self.k.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's k and v (B,K,S,D); return all its keys and values (B,K,T,D).

        The model advances ``length`` after its last layer.
        """
        if k.requires_grad:
            raise ValueError(
                "cache: expected a call under torch.no_grad(), got tensors that need gradients "
                "(a KV cache is for inference)"
            )
        new = slice(self.length, self.length + k.shape[2])
        self.k[layer, :, :, new] = k
        self.v[layer, :, :, new] = v
        return self.k[layer, :, :, : new.stop], self.v[layer, :, :, : new.stop]
