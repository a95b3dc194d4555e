"""flash-attn's functions for packed sequences."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from llama_fast.integrations.flash_attn import checks
from llama_fast.integrations.flash_attn.dropout_pattern import DropoutPattern
from llama_fast.ops import _checks
from llama_fast.ops.attention import attention
from llama_fast.ops.attention_decode import attention_decode


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> Any:
    """Attention of packed sequences of different lengths.

    S and T are the numbers of queries and keys of a sequence; either may be 0.

    Args:
        q: queries (N,H,D); float64, float32, bfloat16 or float16. Any strides.
        k: keys (M,K,D) with H a multiple of K, or with `block_table` pages (P,page,K,D).
        v: values (M,K,Dv), or pages (P,page,K,Dv).
        cu_seqlens_q: int32 or int64 (sequences + 1,): offsets of the sequences in `q`. The
            result is zero for rows of `q` after the last sequence (undefined on a GPU).
        cu_seqlens_k: offsets of the sequences in `k`, in the same form; with `block_table` only
            their differences matter.
        max_seqlen_q: an upper bound of the lengths of the query sequences.
        max_seqlen_k: an upper bound of the lengths of the key sequences.
        dropout_p: probability of dropping an attention weight; 0.0 for evaluation.
        softmax_scale: multiplies q . k; default 1 / sqrt(D).
        causal: whether query i of a sequence sees only its keys j <= i + T - S.
        window_size: (left, right) around i + T - S, -1 for no bound.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c); 0.0 for none.
        alibi_slopes: (H,) or (sequences,H) float; adds ``-slope * |i + T - S - j|``.
        deterministic: has no effect; all kernels are deterministic.
        return_attn_probs: also return softmax_lse and S_dmask.
        block_table: int32 or int64 (sequences, pages): key t of sequence b is row ``t % page`` of
            page ``block_table[b, t // page]``. Pages may have any size. They are read in
            place if all sequences have the same number of queries, attention is causal (or there is
            one query each), and neither gradients nor dropout are needed. Otherwise the keys in use
            are copied, and gradients reach them.

    Returns:
        out (N,H,Dv). With `return_attn_probs` the triple (out, softmax_lse, S_dmask) as in
        :func:`flash_attn_func`: softmax_lse is (H,N), and S_dmask is empty without dropout, else
        (sequences,H,max_seqlen_q,max_seqlen_k).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number does not fit; the message names the argument.
    """
    checks.heads(
        q,
        k,
        v,
        ("(N,H,D)", "(M,K,D)", "(M,K,Dv)")
        if block_table is None
        else ("(N,H,D)", "(P,page,K,D)", "(P,page,K,Dv)"),
    )
    options = checks.options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    max_lengths = (
        _max_length("max_seqlen_q", max_seqlen_q),
        _max_length("max_seqlen_k", max_seqlen_k),
    )
    num_keys = k.shape[0] if block_table is None else sys.maxsize
    rows = q.shape[0]
    used_q = checks.offsets("cu_seqlens_q", cu_seqlens_q, rows, "max_seqlen_q", max_lengths[0])
    used_k = checks.offsets("cu_seqlens_k", cu_seqlens_k, num_keys, "max_seqlen_k", max_lengths[1])
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        raise ValueError(
            f"cu_seqlens_k: expected as many offsets as cu_seqlens_q, {cu_seqlens_q.numel()}, "
            f"got {cu_seqlens_k.numel()}"
        )
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        _checks.check_device(name, cu, "q", q)
    q = q[:used_q]
    if block_table is None:
        k, v = k[:used_k], v[:used_k]
    else:
        block_table = _check_table(block_table, k, cu_seqlens_k, q)
        if dropout_p == 0 and _decodes(q, k, v, cu_seqlens_q, max_lengths[0], options):
            options["return_lse"] = bool(return_attn_probs)
            return _with_tail(
                _decode(q, k, v, cu_seqlens_k, block_table, max_lengths[0], options), rows
            )
        k, v = _gathered(k, v, cu_seqlens_k, block_table, max_lengths[1])

    options |= {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    if not return_attn_probs:
        return _with_tail(attention(q, k, v, dropout_p=dropout_p, **options), rows)
    pattern = DropoutPattern(q.device, dropout_p)
    out, lse = attention(q, k, v, dropout_p=dropout_p, return_lse=True, **options)
    return _with_tail((out, lse.transpose(0, 1), pattern.varlen(q, k, max_lengths, options)), rows)


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_varlen_func` of queries, keys and values in one tensor (N,3,H,D)."""
    checks.packed("qkv", qkv, 3, 1, "(N,3,H,D)")
    max_length = _max_length("max_seqlen", max_seqlen)
    checks.offsets("cu_seqlens", cu_seqlens, qkv.shape[0], "max_seqlen", max_length)
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_varlen_func` of queries (N,H,D), and keys and values in one (M,2,K,D)."""
    checks.packed("kv", kv, 2, 1, "(M,2,K,D)")
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def _max_length(name: str, value: Any) -> int:
    """Return `value`, which may be a tensor with one element, as an int of at least 0."""
    if isinstance(value, torch.SymInt):
        return value
    try:
        length = operator.index(value)
    except TypeError:
        length = -1
    if length < 0:
        raise ValueError(f"{name}: expected an int of at least 0, got {value!r}")
    return length


def _with_tail(result: Any, rows: int) -> Any:
    """Append zeros to `result` for the rows of `q` after the last sequence."""
    out = result[0] if isinstance(result, tuple) else result
    missing = rows - out.shape[0]
    if missing == 0:
        return result
    out = F.pad(out, (0, 0, 0, 0, 0, missing))
    if not isinstance(result, tuple):
        return out
    return out, F.pad(result[1], (0, missing), value=-math.inf), result[2]


# --- paged keys ------------------------------------------------------------------------------


def _check_table(
    table: Any, k: torch.Tensor, cu_seqlens_k: torch.Tensor, q: torch.Tensor
) -> torch.Tensor:
    """Check that `table` has pages for every key; return it as int32."""
    _checks.check_tensor("block_table", table, checks.INDEX_DTYPES, "int32 or int64")
    _checks.check_dim("block_table", table, 2, "(sequences,pages)")
    sequences = cu_seqlens_k.numel() - 1
    if table.shape[0] != sequences:
        raise ValueError(
            f"block_table: expected a row for each of the {sequences} sequences, "
            f"got {_checks.shape(table)}"
        )
    _checks.check_device("block_table", table, "q", q)
    count, page = k.shape[:2]
    if page == 0:
        raise ValueError("k: expected pages of at least one key, got pages of none")
    if checks.host_values(cu_seqlens_k):
        lengths = cu_seqlens_k.diff().tolist()
        needed = -(-max(lengths, default=0) // page)
        if needed > table.shape[1]:
            raise ValueError(
                f"block_table: expected at least {needed} pages a sequence, got {table.shape[1]}"
            )
        checks.pages(table, [0] * sequences, lengths, page, count)
    return table.to(torch.int32)


def _decodes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_length: int,
    options: dict[str, Any],
) -> bool:
    """Whether `attention_decode`, which reads pages in place, can compute this call."""
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (q, k, v, options["alibi_slopes"])
    ):
        return False
    # No sequence is longer than `max_length`; if the total is the maximum, all have that length.
    uniform = max_length > 0 and max_length * (cu_seqlens_q.numel() - 1) == q.shape[0]
    return uniform and (options["causal"] or max_length == 1)


def _decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    table: torch.Tensor,
    queries: int,
    options: dict[str, Any],
) -> Any:
    options = {name: value for name, value in options.items() if name != "causal"}
    result = attention_decode(
        q.unflatten(0, (table.shape[0], queries)).transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        cache_seqlens=cu_seqlens_k.diff().to(torch.int32),
        page_table=table,
        **options,
    )
    if not options["return_lse"]:
        return result.transpose(1, 2).flatten(0, 1)
    out, lse = result
    return out.transpose(1, 2).flatten(0, 1), lse.transpose(0, 1).flatten(1), q.new_empty(0)


def _gathered(
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    table: torch.Tensor,
    max_length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the keys and values of all sequences from their pages into packed tensors."""
    page = k.shape[1]
    lengths = cu_seqlens_k.diff().unsqueeze(1)
    position = torch.arange(min(max_length, page * table.shape[1]), device=k.device).expand(
        lengths.shape[0], -1
    )
    in_use = position < lengths
    pages = table.long().gather(1, position // page)[in_use]
    rows = (position % page)[in_use]
    return k[pages, rows], v[pages, rows]
