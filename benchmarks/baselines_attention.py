"""torch's attention, called in the different ways of the baselines."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .cases import Case
from .implementation import Run, Unsupported
from .inputs import Inputs


def mask_of(case: Case, inputs: Inputs) -> torch.Tensor | None:
    """The attn_mask of a case: a bias, or bool with True = visible; None if is_causal suffices."""
    extra, S = inputs.extra, case.sizes["S"]
    device = inputs.sets[0]["q"].device
    i = torch.arange(S, device=device).unsqueeze(1)
    j = torch.arange(case.sizes["T"], device=device)
    if "bias" in extra:
        bias = extra["bias"]
        return bias.masked_fill(j > i, -torch.inf) if case.options["causal"] else bias
    if "window" in case.options:
        return (j <= i) & (i - j < case.options["window"])
    if "cu_seqlens" in extra:
        document = _documents(case, device)
        return (j <= i) & (document.unsqueeze(1) == document)
    if "key_padding_mask" in extra:
        return (j <= i) & ~extra["key_padding_mask"][:, None, None, :]
    return None


def _documents(case: Case, device: torch.device) -> torch.Tensor:
    """The document that each token belongs to, (N,)."""
    lengths = torch.tensor(case.options["documents"], device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)


def _in_heads(run: Run) -> Run:
    """Turn a function of (1,H,N,D) tensors into one of (N,H,D) tensors, without a copy."""

    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return run(*(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))).squeeze(0).transpose(0, 1)

    return packed


def sdpa(case: Case, inputs: Inputs) -> Run:
    mask = mask_of(case, inputs)
    # A single query sees all keys; torch's own causal mask would let it see only the first.
    causal = mask is None and case.options["causal"] and case.sizes["S"] > 1
    grouped = case.sizes["H"] != case.sizes["K"]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    return _in_heads(run) if "documents" in case.options else run


def sdpa_decode(case: Case, inputs: Inputs) -> Run | None:
    """Write the new keys and values, which fill the cache, then call SDPA on the whole cache."""
    if case.options["page"]:
        return None
    S, T = case.sizes["S"], case.sizes["T"]
    device = inputs.sets[0]["q"].device
    mask = torch.ones(S, T, dtype=torch.bool, device=device).tril(T - S) if S > 1 else None
    grouped = case.sizes["H"] != case.sizes["K"]

    def run(q, k_cache, v_cache, k, v) -> torch.Tensor:  # type: ignore[no-untyped-def]
        k_cache[:, :, T - S :] = k
        v_cache[:, :, T - S :] = v
        return F.scaled_dot_product_attention(
            q, k_cache, v_cache, attn_mask=mask, enable_gqa=grouped
        )

    return run


def sdpa_decode_by_hand(case: Case, inputs: Inputs) -> Run | None:
    """As `sdpa_decode`, but heads of a group become queries of one head, and pages are gathered."""
    (S, T), (H, K) = (case.sizes[n] for n in "ST"), (case.sizes[n] for n in "HK")
    if S > 1:
        return None
    table, page = inputs.extra.get("page_table"), case.options["page"]

    def run(q, k_cache, v_cache, k, v) -> torch.Tensor:  # type: ignore[no-untyped-def]
        folded = q.view(q.shape[0], K, H // K, -1)
        caches = []
        for cache, new in ((k_cache, k), (v_cache, v)):
            if table is None:
                cache[:, :, T - 1] = new[:, :, 0]
                caches.append(cache)
            else:
                cache[table[:, -1], :, (T - 1) % page] = new[:, :, 0]
                caches.append(cache[table].transpose(1, 2).flatten(2, 3))
        return F.scaled_dot_product_attention(folded, *caches).view(q.shape)

    return run


def sdpa_by_hand(case: Case, inputs: Inputs) -> Run | None:
    """SDPA rearranged by hand: no work on masked pairs, and heads of a group folded together."""
    sdpa = F.scaled_dot_product_attention
    H, K = case.sizes["H"], case.sizes["K"]
    if "documents" in case.options:
        lengths = case.options["documents"]

        def by_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
            return torch.cat([sdpa(a, b, c, is_causal=True) for a, b, c in parts], dim=2)

        return _in_heads(by_document)
    if "window" in case.options:
        return _by_blocks(case, inputs)
    if "copies" in case.options and H != K:

        def one_query(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            folded = q.view(q.shape[0], K, H // K, -1)  # a group's heads as queries of one head
            return sdpa(folded, k, v).view(q.shape)

        return one_query
    if H != K:

        def repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))
            return sdpa(q, k, v, is_causal=True)

        return repeated
    return None


def _by_blocks(case: Case, inputs: Inputs) -> Run:
    """A window computed in blocks of its width: each attends to itself and the preceding block."""
    w, S = case.options["window"], case.sizes["S"]
    device = inputs.sets[0]["q"].device
    i, j = torch.arange(w, device=device).unsqueeze(1) + w, torch.arange(2 * w, device=device)
    band = ((j <= i) & (i - j < w))[:, 1:]  # no query sees the first key of the preceding block

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        first = slice(0, min(w, S))
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, first], k[:, :, first], v[:, :, first], is_causal=True
            )
        ]
        for begin in range(w, S, w):
            end = min(begin + w, S)
            keys = slice(begin - w + 1, end)
            mask = band[: end - begin, : end - begin + w - 1]
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, begin:end], k[:, :, keys], v[:, :, keys], attn_mask=mask
                )
            )
        return torch.cat(parts, dim=2)

    return run


def nested(case: Case, inputs: Inputs) -> Run | None:
    if "documents" not in case.options:
        return None
    if inputs.sets[0]["q"].device.type == "cpu":
        raise Unsupported("torch has no causal attention for nested tensors on the CPU")
    offsets = inputs.extra["cu_seqlens"].long()
    lengths = case.options["documents"]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                x, offsets, min_seqlen=min(lengths), max_seqlen=max(lengths)
            ).transpose(1, 2)
            for x in (q, k, v)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).values()

    return run


def flex(case: Case, inputs: Inputs) -> Run | None:
    if "window" not in case.options and "documents" not in case.options:
        return None
    device = inputs.sets[0]["q"].device
    if case.backward and device.type == "cpu":
        raise Unsupported("FlexAttention has no backward on the CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if "window" in case.options:
        w = case.options["window"]

        def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (j <= i) & (i - j < w)
    else:
        document = _documents(case, device)

        def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (j <= i) & (document[i] == document[j])

    S = case.sizes["S"]
    blocks = create_block_mask(seen, None, None, S, S, device=str(device))
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return compiled(q, k, v, block_mask=blocks)

    return _in_heads(run) if "documents" in case.options else run
