"""llama_fast and all baselines behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_fast

from . import baselines_cuda, baselines_torch
from .cases import DTYPES, Case
from .implementation import OURS, Implementation, Run, optimizer_step
from .inputs import Inputs


def _attention(case: Case, inputs: Inputs) -> Run:
    options: dict[str, Any] = {
        "causal": case.options["causal"],
        "window": case.options.get("window"),
        "bias": inputs.extra.get("bias"),
        "key_padding_mask": inputs.extra.get("key_padding_mask"),
        "cu_seqlens_q": inputs.extra.get("cu_seqlens"),
    }
    return lambda q, k, v: llama_fast.attention(q, k, v, **options)


def _attention_decode(case: Case, inputs: Inputs) -> Run:
    extra = inputs.extra
    return lambda q, k_cache, v_cache, k, v: llama_fast.attention_decode(
        q, k_cache, v_cache, k=k, v=v, **extra
    )


def _cross_entropy(case: Case, inputs: Inputs) -> Run:
    inplace = bool(case.options.get("inplace"))
    return lambda logits, target: llama_fast.cross_entropy(logits, target, inplace=inplace)


def _rms_norm(case: Case, inputs: Inputs) -> Run:
    return lambda input, weight, residual=None: llama_fast.rms_norm(
        input, weight, 1e-5, residual=residual
    )


def _rope(case: Case, inputs: Inputs) -> Run:
    cos, sin = inputs.extra["cos"], inputs.extra["sin"]
    return lambda q, k: llama_fast.rope(q, k, cos, sin)


def _training(case: Case, inputs: Inputs) -> Run:
    s = case.sizes
    config = llama_fast.models.LlamaConfig(
        s["V"], s["E"], s["H"], s["L"], ffn_dim=s["F"], max_seq_len=s["S"]
    )
    device = inputs.sets[0]["tokens"].device
    model = llama_fast.LLaMA(config).to(device, DTYPES[case.dtype]).train()
    return optimizer_step(model, model.loss)


_LLAMA_FAST = Implementation(
    OURS,
    "this package, through its public functions",
    {
        "attention": _attention,
        "attention_decode": _attention_decode,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": lambda case, inputs: llama_fast.linear_cross_entropy,
        "rms_norm": _rms_norm,
        "rope": _rope,
        "swiglu": lambda case, inputs: llama_fast.swiglu,
        "llama_training": _training,
    },
)


def all_implementations() -> dict[str, Implementation]:
    """Every implementation by name, ours first."""
    return {
        implementation.name: implementation
        for implementation in (_LLAMA_FAST, *baselines_torch.BASELINES, *baselines_cuda.BASELINES)
    }


def choose(names: Sequence[str], device: str) -> tuple[list[Implementation], dict[str, str]]:
    """The available implementations, always including ours, and why others are not available.

    Args:
        names: names of implementations; empty for all.
        device: "cpu" or "cuda".

    Raises:
        ValueError: there is no implementation of a given name.
    """
    known = all_implementations()
    for name in names:
        if name not in known:
            raise ValueError(f"--baselines: expected names among {', '.join(known)}; got {name!r}")
    present, missing = [], {}
    for implementation in known.values():
        if names and implementation.name not in (OURS, *names):
            continue
        reason = implementation.missing(device)
        if reason is None:
            present.append(implementation)
        elif names or implementation.device in (
            "",
            device,
        ):  # on a CPU, missing GPU libraries are not reported
            missing[implementation.name] = reason
    return present, missing
