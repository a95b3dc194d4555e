"""Checks of the model's input."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LlamaConfig
from .kv_cache import KVCache


def check_packed(config: LlamaConfig, tokens: Tensor, cu_seqlens: Tensor) -> None:
    """Raise unless `tokens` is one row of packed sequences of at most max_seq_len tokens."""
    if tokens.dim() != 2 or tokens.shape[0] != 1:
        raise ValueError(
            f"tokens: expected shape (1,S) beside cu_seqlens, got {tuple(tokens.shape)}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "cu_seqlens: expected a vector of int32 or int64, got "
            f"{tuple(cu_seqlens.shape)} of {cu_seqlens.dtype}"
        )
    # Only on the CPU, as in `check_inputs`. The op itself checks the offsets.
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        if longest > config.max_seq_len:
            raise ValueError(
                f"cu_seqlens: expected sequences of at most max_seq_len = "
                f"{config.max_seq_len} tokens, got one of {longest}"
            )


def check_inputs(
    config: LlamaConfig,
    tokens: Tensor,
    src_mask: Tensor | None,
    src_key_padding_mask: Tensor | None,
    cache: KVCache | None,
    packed: bool,
) -> None:
    """Raise unless ids are in the vocabulary, masks fit, and the cache has room."""
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"tokens: expected int64 or int32 ids, got {tokens.dtype}")
    if tokens.dim() != 2:
        raise ValueError(f"tokens: expected shape (B,S), got {tuple(tokens.shape)}")
    B, S = tokens.shape
    T = S if cache is None else cache.length + S
    if cache is not None and cache.k.shape[1] != B:
        raise ValueError(f"cache: expected a batch of {B}, got {cache.k.shape[1]}")
    if cache is not None and cache.max_len < T:
        raise ValueError(f"cache: expected room for {T} tokens, got max_len {cache.max_len}")
    if not packed and config.max_seq_len < T:
        raise ValueError(
            f"tokens: expected at most max_seq_len = {config.max_seq_len} with those in "
            f"the cache, got {T}"
        )
    if src_mask is not None and src_mask.shape != (S, T):
        raise ValueError(f"src_mask: expected (S,T) = {(S, T)}, got {tuple(src_mask.shape)}")
    if src_mask is not None and src_mask.dtype != torch.bool and not src_mask.is_floating_point():
        raise TypeError(f"src_mask: expected bool or float, got {src_mask.dtype}")
    if (padding := src_key_padding_mask) is not None and padding.shape != (B, T):
        raise ValueError(
            f"src_key_padding_mask: expected (B,T) = {(B, T)}, got {tuple(padding.shape)}"
        )
    if padding is not None and padding.dtype != torch.bool:
        raise TypeError(f"src_key_padding_mask: expected bool, got {padding.dtype}")
    # The embedding's error does not name the index. On a GPU reading the result would synchronise
    # the device, so only the CPU checks.
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (tokens < 0) | (tokens >= config.vocab_size)
        if bad.any():
            b, s = bad.nonzero()[0].tolist()
            raise IndexError(
                f"tokens: expected ids in [0, {config.vocab_size}), got "
                f"{tokens[b, s].item()} at position ({b}, {s})"
            )
