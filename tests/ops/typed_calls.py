"""Calls of the ops with the types that a type checker must see; test_types.py has mypy check them.

Nothing here runs.
"""

import torch
from torch import Tensor
from typing_extensions import assert_type

import llama_fast
from llama_fast import reference

Pair = tuple[Tensor, Tensor]
LossAndStats = tuple[Tensor, reference.Stats]


def attention(q: Tensor, flag: bool) -> None:
    assert_type(llama_fast.attention(q, q, q, causal=True, window=(3, -1), bias=q), Tensor)
    assert_type(llama_fast.attention(q, q, q, return_lse=False), Tensor)
    assert_type(llama_fast.attention(q, q, q, sinks=q, return_lse=True), Pair)
    assert_type(llama_fast.attention(q, q, q, return_lse=flag), Tensor | Pair)
    llama_fast.attention(q, q, q, causal="yes")  # type: ignore[call-overload]
    llama_fast.attention(q, q, q, casual=True)  # type: ignore[call-overload]
    assert_type(llama_fast.scaled_dot_product_attention(q, q, q, is_causal=True), Tensor)


def attention_decode(q: Tensor, held: Tensor, flag: bool) -> None:
    assert_type(llama_fast.attention_decode(q, q, q, cache_seqlens=held, k=q, v=q), Tensor)
    assert_type(llama_fast.attention_decode(q, q, q, cache_seqlens=held, return_lse=True), Pair)
    assert_type(
        llama_fast.attention_decode(q, q, q, cache_seqlens=held, return_lse=flag), Tensor | Pair
    )
    llama_fast.attention_decode(q, q, q)  # type: ignore[call-overload]


def small_ops(x: Tensor, optional: Tensor | None) -> None:
    assert_type(llama_fast.rms_norm(x, x, 1e-5, offset=1.0), Tensor)
    assert_type(llama_fast.rms_norm(x, x, residual=None), Tensor)
    assert_type(llama_fast.rms_norm(x, x, residual=x), Pair)
    assert_type(llama_fast.rms_norm(x, x, residual=optional), Tensor | Pair)
    assert_type(llama_fast.rope(x, x, x, x, interleaved=True), Pair)
    assert_type(llama_fast.swiglu(x, x), Tensor)
    llama_fast.swiglu(x)  # type: ignore[call-arg]


def losses(x: Tensor, y: Tensor, flag: bool) -> None:
    assert_type(llama_fast.cross_entropy(x, y, x, -1, "sum", 0.1, softcap=3.0), Tensor)
    assert_type(llama_fast.cross_entropy(x, y, return_stats=False), Tensor)
    assert_type(llama_fast.cross_entropy(x, y, inplace=True, return_stats=True), LossAndStats)
    assert_type(llama_fast.cross_entropy(x, y, return_stats=flag), Tensor | LossAndStats)
    llama_fast.cross_entropy(x, y, reduction=1)  # type: ignore[call-overload]
    assert_type(llama_fast.linear_cross_entropy(x, x, y, shift=True, z_loss=1e-4), Tensor)
    assert_type(llama_fast.linear_cross_entropy(x, x, y, return_stats=True), LossAndStats)
    assert_type(llama_fast.linear_cross_entropy(x, x, y, return_stats=flag), Tensor | LossAndStats)
    llama_fast.linear_cross_entropy(x, x, y, x)  # type: ignore[call-overload]


def options(q: Tensor, held: Tensor) -> None:
    own = reference.AttentionOptions(causal=True, scale=0.5)
    assert_type(own.bias, Tensor | None)
    assert_type(own.window, tuple[int, int])
    assert_type(reference.attention(q, q, q, own), Pair)
    decoding = reference.AttentionDecodeOptions(None, None, held, scale=0.5)
    assert_type(reference.attention_decode(q, q, q, decoding), Pair)
    assert_type(reference.CrossEntropyOptions(q, label_smoothing=0.1).weight, Tensor | None)
    assert_type(reference.rms_norm(q, q, None, 1e-6, 0.0), Pair)
    reference.AttentionOptions(casual=True)  # type: ignore[call-arg]
    assert_type(torch.ones(1), Tensor)
