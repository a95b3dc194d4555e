"""Baselines on a GPU. Packages are imported on use, and missing ones are reported."""

from __future__ import annotations

from typing import Any

import torch

from .baselines_torch import EPS, _full_tables
from .cases import Case
from .implementation import Implementation, Run, Unsupported
from .inputs import Inputs


def _flash_attn(case: Case, inputs: Inputs) -> Run | None:
    import flash_attn

    if "bias" in inputs.extra or "key_padding_mask" in inputs.extra:
        return None
    if case.dtype == "float32":
        raise Unsupported("flash-attn has no float32")
    window = (case.options["window"] - 1, 0) if "window" in case.options else (-1, -1)
    causal = case.options["causal"]
    if "documents" in case.options:
        offsets, longest = inputs.extra["cu_seqlens"], max(case.options["documents"])
        return lambda q, k, v: flash_attn.flash_attn_varlen_func(
            q, k, v, offsets, offsets, longest, longest, causal=causal
        )
    if "copies" in case.options:
        # The function for decoding, which splits the keys among the multiprocessors.
        function: Any = flash_attn.flash_attn_with_kvcache
    else:
        function = flash_attn.flash_attn_func

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B,S,H,D), strided
        return function(q, k, v, causal=causal, window_size=window).transpose(1, 2)

    return run


def _flash_attn_decode(case: Case, inputs: Inputs) -> Run:
    import flash_attn

    page = case.options["page"]
    if page % 256:
        raise Unsupported("flash-attn takes pages of 256 keys")
    held, table = inputs.extra["cache_seqlens"], inputs.extra.get("page_table")

    def run(q, k_cache, v_cache, k, v) -> torch.Tensor:  # type: ignore[no-untyped-def]
        q, k_cache, v_cache, k, v = (x.transpose(1, 2) for x in (q, k_cache, v_cache, k, v))
        return flash_attn.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=held, block_table=table, causal=True
        ).transpose(1, 2)

    return run


def _liger_cross_entropy(case: Case, inputs: Inputs) -> Run:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy


def _liger_linear_cross_entropy(case: Case, inputs: Inputs) -> Run:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


def _liger_rms_norm(case: Case, inputs: Inputs) -> Run:
    from liger_kernel.transformers import functional

    if not case.options.get("residual"):
        return lambda input, weight: functional.liger_rms_norm(input, weight, EPS, in_place=False)
    fused = getattr(functional, "liger_fused_add_rms_norm", None)
    if fused is None:
        raise Unsupported("this Liger-Kernel has no fused addition and norm")
    return lambda input, weight, residual: fused(input, residual, weight, EPS, in_place=False)


def _liger_rope(case: Case, inputs: Inputs) -> Run:
    from liger_kernel.transformers.functional import liger_rope

    cos, sin = _full_tables(case, inputs)
    # It rotates contiguous inputs in place, leaves included; with a copy all rounds are equal.
    return lambda q, k: liger_rope(q.clone(), k.clone(), cos, sin)


def _liger_swiglu(case: Case, inputs: Inputs) -> Run:
    from liger_kernel.transformers.functional import liger_swiglu

    return liger_swiglu


def _cut_cross_entropy(case: Case, inputs: Inputs) -> Run:
    from cut_cross_entropy import linear_cross_entropy

    if case.dtype == "float32":
        raise Unsupported("cut-cross-entropy has no float32")
    return linear_cross_entropy


def _quack_cross_entropy(case: Case, inputs: Inputs) -> Run:
    from quack import cross_entropy

    inplace = bool(case.options.get("inplace"))
    return lambda logits, target: cross_entropy(
        logits, target, reduction="mean", inplace_backward=inplace
    )


def _quack_linear_cross_entropy(case: Case, inputs: Inputs) -> Run:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


def _quack_rms_norm(case: Case, inputs: Inputs) -> Run:
    from quack import rmsnorm

    if not case.options.get("residual"):
        return lambda input, weight: rmsnorm(input, weight, eps=EPS)
    return lambda input, weight, residual: rmsnorm(
        input, weight, residual=residual, eps=EPS, prenorm=True
    )


BASELINES = (
    Implementation(
        "flash-attn",
        "flash-attention 2",
        {"attention": _flash_attn, "attention_decode": _flash_attn_decode},
        needs=("flash_attn",),
        device="cuda",
    ),
    Implementation(
        "liger-kernel",
        "Liger-Kernel's functions",
        {
            "cross_entropy": _liger_cross_entropy,
            "linear_cross_entropy": _liger_linear_cross_entropy,
            "rms_norm": _liger_rms_norm,
            "rope": _liger_rope,
            "swiglu": _liger_swiglu,
        },
        needs=("liger_kernel",),
        device="cuda",
        overwrites=("cross_entropy",),
    ),
    Implementation(
        "cut-cross-entropy",
        "Apple's cut-cross-entropy",
        {"linear_cross_entropy": _cut_cross_entropy},
        needs=("cut_cross_entropy",),
        device="cuda",
    ),
    Implementation(
        "quack",
        "quack's CuTe kernels",
        {
            "cross_entropy": _quack_cross_entropy,
            "linear_cross_entropy": _quack_linear_cross_entropy,
            "rms_norm": _quack_rms_norm,
        },
        needs=("quack",),
        device="cuda",
        overwrites=("cross_entropy",),
    ),
)
