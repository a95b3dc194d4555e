"""Baselines that run anywhere: torch, torch.compile, FlexAttention, transformers, zentorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from . import baselines_attention as attention
from .cases import DTYPES, Case
from .implementation import Builder, Implementation, Run, Unsupported, optimizer_step
from .inputs import Inputs

EPS = 1e-5


def naive_linear_cross_entropy(
    input: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Linear cross-entropy that computes all logits at once."""
    return F.cross_entropy(F.linear(input, weight), target)


def _torch_linear_cross_entropy(case: Case, inputs: Inputs) -> Run:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unsupported(f"torch {torch.__version__} has none (2.13 and later do)")
    # By default it is naive, like the implementation "torch"; the options select chunks.
    options = torch.nn.LinearCrossEntropyOptions()

    def run(input: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.linear_cross_entropy(input, weight, target, options=options)

    return run


def _torch_rms_norm(case: Case, inputs: Inputs) -> Run:
    def run(input: torch.Tensor, weight: torch.Tensor, residual: Any = None) -> Any:
        x = input if residual is None else input + residual
        y = F.rms_norm(x, (x.shape[-1],), weight, EPS)
        return y if residual is None else (y, x)

    return run


def _rms_norm_formula(input: torch.Tensor, weight: torch.Tensor, residual: Any = None) -> Any:
    x = input if residual is None else input + residual
    wide = x.float()
    y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight
    return y if residual is None else (y, x)


def _full_tables(case: Case, inputs: Inputs) -> list[torch.Tensor]:
    """cos and sin in the form of Hugging Face models: (1,S,D), in the dtype of the model."""
    tables = (inputs.extra["cos"], inputs.extra["sin"])
    return [torch.cat([x, x], dim=-1).unsqueeze(0).to(DTYPES[case.dtype]) for x in tables]


def _rotate(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def _torch_rope(case: Case, inputs: Inputs) -> Run:
    cos, sin = (x.unsqueeze(1) for x in _full_tables(case, inputs))
    return lambda q, k: (q * cos + _rotate(q) * sin, k * cos + _rotate(k) * sin)


def _torch_swiglu(case: Case, inputs: Inputs) -> Run:
    return lambda gate, up: F.silu(gate) * up


def _transformers_rms_norm(case: Case, inputs: Inputs) -> Run:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(case.sizes["E"], EPS)

    def run(input: torch.Tensor, weight: torch.Tensor, residual: Any = None) -> Any:
        norm.__dict__["weight"] = weight  # the case's tensor in place of a parameter
        x = input if residual is None else input + residual
        return norm(x) if residual is None else (norm(x), x)

    del norm._parameters["weight"]
    return run


def _transformers_rope(case: Case, inputs: Inputs) -> Run:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cos, sin = _full_tables(case, inputs)
    return lambda q, k: apply_rotary_pos_emb(q, k, cos, sin)


def _transformers_swiglu(case: Case, inputs: Inputs) -> Run:
    from transformers.activations import ACT2FN

    act = ACT2FN["silu"]  # as LlamaMLP: down_proj(act_fn(gate) * up)
    return lambda gate, up: act(gate) * up


def _transformers_training(compiled: bool) -> Builder:
    def build(case: Case, inputs: Inputs) -> Run:
        from transformers import LlamaConfig, LlamaForCausalLM

        s = case.sizes
        options: dict[str, Any] = {"attn_implementation": "sdpa"}
        config = LlamaConfig(
            vocab_size=s["V"],
            hidden_size=s["E"],
            num_hidden_layers=s["L"],
            num_attention_heads=s["H"],
            intermediate_size=s["F"],
            max_position_embeddings=s["S"],
            tie_word_embeddings=False,
            use_cache=False,
            **options,
        )
        device = inputs.sets[0]["tokens"].device
        model = LlamaForCausalLM(config).to(device, DTYPES[case.dtype]).train()
        forward = torch.compile(model, dynamic=False) if compiled else model

        def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            # `shift_labels` are targets that are already shifted.
            return forward(input_ids=tokens, labels=targets, shift_labels=targets).loss

        return optimizer_step(model, loss)

    return build


EAGER: dict[str, Builder] = {
    "attention": attention.sdpa,
    "attention_decode": attention.sdpa_decode,
    "cross_entropy": lambda case, inputs: F.cross_entropy,
    "linear_cross_entropy": lambda case, inputs: naive_linear_cross_entropy,
    "rms_norm": _torch_rms_norm,
    "rope": _torch_rope,
    "swiglu": _torch_swiglu,
}
# Compiled from the formula, so that the baseline is what the compiler fuses, not a kernel call.
_FORMULAS = {op: build for op, build in EAGER.items() if "attention" not in op} | {
    "rms_norm": lambda case, inputs: _rms_norm_formula
}


def _compiled(builders: dict[str, Builder], backend: str = "inductor") -> dict[str, Builder]:
    def one(build: Builder) -> Builder:
        def compiled(case: Case, inputs: Inputs) -> Run:
            return torch.compile(build(case, inputs), dynamic=False, backend=backend)

        return compiled

    return {op: one(build) for op, build in builders.items()}


BASELINES = (
    Implementation(
        "torch",
        "torch's functions: SDPA with a mask where one is needed, F.cross_entropy, F.rms_norm, …",
        EAGER,
    ),
    Implementation(
        "torch-by-hand",
        "SDPA as an expert calls it: per document, in blocks of the window, heads folded",
        {"attention": attention.sdpa_by_hand, "attention_decode": attention.sdpa_decode_by_hand},
    ),
    Implementation("torch-nested", "SDPA on nested tensors", {"attention": attention.nested}),
    Implementation(
        "flex-attention",
        "torch's FlexAttention, compiled, for windows and packed documents",
        {"attention": attention.flex},
        compiled=True,
    ),
    Implementation(
        "F.linear_cross_entropy",
        "torch's own, in chunks",
        {"linear_cross_entropy": _torch_linear_cross_entropy},
    ),
    Implementation(
        "torch.compile",
        "the formula, or transformers' model, through torch.compile",
        _compiled(_FORMULAS) | {"llama_training": _transformers_training(True)},
        compiled=True,
    ),
    Implementation(
        "transformers",
        "LlamaRMSNorm, apply_rotary_pos_emb, LlamaMLP's activation, LlamaForCausalLM (SDPA)",
        {
            "rms_norm": _transformers_rms_norm,
            "rope": _transformers_rope,
            "swiglu": _transformers_swiglu,
            "llama_training": _transformers_training(False),
        },
        needs=("transformers",),
    ),
    Implementation(
        "zentorch",
        "the same functions through torch.compile(backend='zentorch')",
        _compiled(EAGER, "zentorch"),
        needs=("zentorch",),
        device="cpu",
        compiled=True,
    ),
)
