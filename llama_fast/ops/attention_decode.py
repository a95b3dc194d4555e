"""Attention of a few new tokens over a contiguous or paged cache of keys and values.

Paged cache: Kwon et al., "PagedAttention" (2023, arXiv:2309.06180). Splitting the keys among the
blocks of a GPU: Dao et al., "Flash-Decoding" (2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from llama_fast import reference
from llama_fast._torch_internals import in_forward_ad, is_wrapped
from llama_fast.ops import _attention_checks as checks
from llama_fast.ops import _checks, stock
from llama_fast.ops._attention_checks import Window
from llama_fast.ops._autocast import autocast_dtype, without_autocast
from llama_fast.ops._autograd import empty_like_heads, needs_plain_torch
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends import cuda
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.current import chosen
from llama_fast.ops.backends.library import library
from llama_fast.reference import AttentionDecodeOptions
from llama_fast.reference._dtypes import wide_dtype

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack


class _Options(TypedDict, total=False):
    """The keyword arguments of `attention_decode` that do not change what it returns."""

    k: Tensor | None
    v: Tensor | None
    cache_seqlens: Required[Tensor]
    page_table: Tensor | None
    scale: float | None
    softcap: float | None
    window: Window
    alibi_slopes: Tensor | None
    sinks: Tensor | None


@overload
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, return_lse: bool, **options: Unpack[_Options]
) -> Tensor | tuple[Tensor, Tensor]: ...
@overridable
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: Tensor,
    page_table: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: Window = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Append new keys and values to a cache in place, and return the attention of `q` to the cache.

    The cache holds ``cache_seqlens[b]`` keys of sequence b before the call and T_b after it: S more
    if `k` and `v` are given, else the same number. Attention is causal: query i of S sees the keys
    up to ``i + T_b - S``. For inference only: neither gradients nor torch.func are supported.

    Args:
        q: queries (B,H,S,D); float64, float32, bfloat16 or float16. Any strides.
        k_cache: keys (B,K,T,D) with H a multiple of K, or with `page_table` pages (P,K,page,D);
            dtype of `q`. Any strides.
        v_cache: values (B,K,T,Dv), or pages (P,K,page,Dv); dtype of `q`.
        k: new keys (B,K,S,D), dtype of `q`; if None, `q` attends to the cache as it is.
        v: new values (B,K,S,Dv), dtype of `q`; required if `k` is given.
        cache_seqlens: int32 (B,), number of cached keys of each sequence before this call. It is
            not updated: the caller adds S. A length that is negative or does not fit in the cache
            is an error on the CPU. On a GPU, where the host does not read the lengths, the result
            of that sequence is NaN and its keys and values are not written.
        page_table: int32 (B, pages): key t of sequence b is row ``t % page`` of page
            ``page_table[b, t // page]``. Entries past a sequence's last key, or before the first
            key in its window, are not read. Any other entry outside [0, P) is treated like a length
            that does not fit. Sequences may share pages, except those that receive new keys.
        scale: multiplies q . k; default 1 / sqrt(D).
        softcap: c > 0 turns each scaled product x into c * tanh(x / c).
        window: ``w``: a query sees its own key and the w - 1 before it. ``(left, right)``: it sees
            `left` keys before its own, -1 for all; `right` has no effect. Default: all keys.
        alibi_slopes: (H,) or (B,H) float; adds ``-slope * (i + T_b - S - j)``.
        sinks: (H,) float; one more logit per head in the softmax, without a value.
        return_lse: also return the log of the softmax's denominator.

    Returns:
        out (B,H,S,Dv) in the dtype of `q`; zero for queries that see no key. With `return_lse` the
        pair (out, lse): lse is (B,H,S) in float32 (float64 for float64 input), and -inf for
        queries that see no key. Under torch.autocast `q`, `k` and `v` are converted to the dtype of
        the cache.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number does not fit, or a tensor requires gradients; the
            message names the argument.

    Example:
        >>> k_cache = v_cache = torch.zeros(1, 2, 1024, 64)
        >>> q = torch.randn(1, 8, 1, 64); k = v = torch.randn(1, 2, 1, 64)
        >>> held = torch.zeros(1, dtype=torch.int32)
        >>> llama_fast.attention_decode(q, k_cache, v_cache, k=k, v=v, cache_seqlens=held).shape
        torch.Size([1, 8, 1, 64])
    """
    q, k, v = _autocast(q, k_cache), _autocast(k, k_cache), _autocast(v, k_cache)
    _check_tensors(q, k_cache, v_cache, k, v)
    _check_cache(q, k_cache, cache_seqlens, page_table)
    scale, softcap = checks.check_scale(scale, q.shape[3]), checks.check_softcap(softcap)
    if alibi_slopes is not None:
        alibi_slopes = checks.check_slopes(alibi_slopes, q, q.shape[0])
    if sinks is not None:
        checks.check_sinks(sinks, q)
    left = checks.check_window(window, True)[0]
    _check_values(q, k_cache, k, cache_seqlens, page_table, left)
    _check_inference(q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v)

    backend = choose("attention_decode", q)
    if chosen("attention_decode") == "cuda" and not torch.compiler.is_compiling():
        reason = _cuda_refusal(q, k_cache, v_cache)
        if reason is not None:
            raise ValueError(f"backend 'cuda' of attention_decode: {reason}")
    options = AttentionDecodeOptions(
        k, v, cache_seqlens, page_table, alibi_slopes, sinks, left, scale, softcap
    )
    if backend in ("cpu", "triton", "cuda"):
        out, lse = torch.ops.llama_fast.attention_decode(q, k_cache, v_cache, *options)
    elif backend == "torch":
        return stock.attention_decode(q, k_cache, v_cache, options, return_lse=return_lse)
    else:
        with without_autocast(q.device.type):
            out, lse = reference.attention_decode(q, k_cache, v_cache, options)
    return (out, lse) if return_lse else out


@torch.library.register_fake("llama_fast::attention_decode", lib=library)
def _attention_decode_fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:-1], dtype=wide_dtype(q.dtype))
    return empty_like_heads(q, last=v_cache.shape[-1]), lse


def _cuda_refusal(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: object) -> str | None:
    """Why the CUDA kernel cannot serve these tensors, or None; csrc/cuda/glue checks the same."""
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"expected bfloat16 or float16, got {q.dtype}"
    if k_cache.shape[3] not in (64, 128, 256):
        return f"expected a head size of 64, 128 or 256, got {k_cache.shape[3]}"
    if v_cache.shape[3] != k_cache.shape[3]:
        return f"expected values of the head size {k_cache.shape[3]}, got {v_cache.shape[3]}"
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        steps = [step for n, step in zip(cache.shape[:3], cache.stride()[:3], strict=True) if n > 1]
        if cache.stride(3) != 1 or any(n % 8 for n in steps) or cache.data_ptr() % 16:
            return (
                f"{name}: expected contiguous rows at multiples of 16 bytes, got the strides "
                f"{tuple(cache.stride())} at {cache.data_ptr():#x}"
            )
    return None


cuda.REFUSALS["attention_decode"] = _cuda_refusal


# --- checks ----------------------------------------------------------------------------------


def _autocast(t: Any, cache: Any) -> Any:
    """Cast `t` to the dtype of the cache if torch.autocast is on for its device."""
    if not isinstance(t, Tensor) or not isinstance(cache, Tensor):
        return t
    if autocast_dtype(t.device.type) is None:
        return t
    return t.to(cache.dtype) if t.dtype in _checks.FLOAT_DTYPES else t


def _check_tensors(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
) -> None:
    layouts = {"q": "(B,H,S,D)", "k_cache": "(B,K,T,D) or (P,K,page,D)"}
    layouts["v_cache"] = "(B,K,T,Dv) or (P,K,page,Dv)"
    for name, t in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        _checks.check_float(name, t)
        _checks.check_dim(name, t, 4, layouts[name])
        _checks.check_same(name, t, "q", q)
    B, _, S, D = q.shape
    K = k_cache.shape[1]
    checks.check_key_shapes("k_cache", k_cache, "v_cache", v_cache, q)
    if (k is None) != (v is None):
        present, missing = ("k", "v") if v is None else ("v", "k")
        raise ValueError(f"{missing}: expected a tensor beside {present}, got None")
    for name, t, size, layout in (
        ("k", k, D, "(B,K,S,D)"),
        ("v", v, v_cache.shape[3], "(B,K,S,Dv)"),
    ):
        if t is not None:
            _checks.check_float(name, t)
            _checks.check_same(name, t, "q", q)
            _checks.check_shape(name, t, (B, K, S, size), layout)


def _check_cache(
    q: Tensor,
    k_cache: Tensor,
    cache_seqlens: Tensor,
    page_table: Tensor | None,
) -> None:
    batch = q.shape[0]
    _checks.check_tensor("cache_seqlens", cache_seqlens, (torch.int32,), "int32")
    _checks.check_shape("cache_seqlens", cache_seqlens, (batch,), "(B,)")
    _checks.check_device("cache_seqlens", cache_seqlens, "q", q)
    if page_table is None:
        if k_cache.shape[0] != batch:
            raise ValueError(
                f"k_cache: expected the batch size of q, {batch}, got {k_cache.shape[0]} "
                "(a paged cache needs a page_table)"
            )
        return
    _checks.check_tensor("page_table", page_table, (torch.int32,), "int32")
    _checks.check_dim("page_table", page_table, 2, "(B,pages)")
    _checks.check_device("page_table", page_table, "q", q)
    if page_table.shape[0] != batch:
        raise ValueError(
            f"page_table: expected the batch size of q, {batch}, got {page_table.shape[0]}"
        )
    if k_cache.shape[2] == 0:
        raise ValueError("k_cache: expected pages of at least one key, got empty pages")


def _check_values(
    q: Tensor,
    k_cache: Tensor,
    k: Tensor | None,
    cache_seqlens: Tensor,
    page_table: Tensor | None,
    left: int,
) -> None:
    """Check lengths and page numbers on the CPU in eager mode, where reading them costs nothing."""
    if torch.compiler.is_compiling() or cache_seqlens.device.type != "cpu":
        return
    queries, page = q.shape[2], k_cache.shape[2]
    added = 0 if k is None else queries
    max_length = (page if page_table is None else page * page_table.shape[1]) - added
    pages = None if page_table is None else page_table.tolist()
    for b, length in enumerate(cache_seqlens.tolist()):
        if not 0 <= length <= max_length:
            raise ValueError(
                f"cache_seqlens: expected lengths in [0, {max_length}], got {length} "
                f"at position {b}"
            )
        if pages is None:
            continue
        total = length + added
        first = max(0, total - queries - left) if left >= 0 else 0
        for i in range(first // page, -(-total // page)):
            if not 0 <= pages[b][i] < k_cache.shape[0]:
                raise ValueError(
                    f"page_table: expected pages in [0, {k_cache.shape[0]}), got {pages[b][i]} "
                    f"at position ({b}, {i})"
                )


def _check_inference(**tensors: Tensor | None) -> None:
    plain = not needs_plain_torch()
    if plain and not torch.is_grad_enabled():
        return
    for name, t in tensors.items():
        if t is None:
            continue
        if torch.is_grad_enabled() and t.requires_grad:
            raise ValueError(
                f"{name}: expected a tensor without gradient, or a call under torch.no_grad(), "
                "got one that requires a gradient (attention_decode is for inference)"
            )
        if not plain and _is_transformed(t):
            raise ValueError(
                f"{name}: expected a tensor outside of forward-mode derivatives and torch.func, "
                "got one of theirs (attention_decode writes into the cache and supports neither)"
            )


def _is_transformed(t: Tensor) -> bool:
    if torch.compiler.is_compiling() or is_wrapped(t):
        return True
    return in_forward_ad() and torch.autograd.forward_ad.unpack_dual(t).tangent is not None
