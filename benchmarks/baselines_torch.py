"""Baselines that run anywhere: torch, torch.compile, FlexAttention, transformers, zentorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .cases import DTYPES, Case
from .implementation import Builder, Implementation, Run, Unsupported, optimizer_step
from .problem import Problem

EPS = 1e-5


def mask_of(case: Case, problem: Problem) -> torch.Tensor | None:
    """What F.scaled_dot_product_attention needs besides is_causal: a bias, or True = takes part."""
    extra, S = problem.extra, case.sizes["S"]
    device = problem.sets[0]["q"].device
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
    """A function of (1,H,N,D) as one of (N,H,D), without a copy."""

    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return run(*(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))).squeeze(0).transpose(0, 1)

    return packed


def _sdpa(case: Case, problem: Problem) -> Run:
    mask = mask_of(case, problem)
    # One query sees all keys; torch's own causal mask would let it see the first alone.
    causal = mask is None and case.options["causal"] and case.sizes["S"] > 1
    grouped = case.sizes["H"] != case.sizes["K"]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    return _in_heads(run) if "documents" in case.options else run


def _sdpa_decode(case: Case, problem: Problem) -> Run | None:
    """Writes the new keys and values, then SDPA over the whole cache, which they fill up."""
    if case.options["page"]:
        return None
    S, T = case.sizes["S"], case.sizes["T"]
    device = problem.sets[0]["q"].device
    mask = torch.ones(S, T, dtype=torch.bool, device=device).tril(T - S) if S > 1 else None
    grouped = case.sizes["H"] != case.sizes["K"]

    def run(q, k_cache, v_cache, k, v) -> torch.Tensor:  # type: ignore[no-untyped-def]
        k_cache[:, :, T - S :] = k
        v_cache[:, :, T - S :] = v
        return F.scaled_dot_product_attention(
            q, k_cache, v_cache, attn_mask=mask, enable_gqa=grouped
        )

    return run


def _sdpa_decode_by_hand(case: Case, problem: Problem) -> Run | None:
    """The same with the heads of a group as queries of one head; pages are collected first."""
    (S, T), (H, K) = (case.sizes[n] for n in "ST"), (case.sizes[n] for n in "HK")
    if S > 1:
        return None
    table, page = problem.extra.get("page_table"), case.options["page"]

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


def _sdpa_by_hand(case: Case, problem: Problem) -> Run | None:
    """SDPA without work on masked pairs, and without its general way of sharing keys."""
    sdpa = F.scaled_dot_product_attention
    H, K = case.sizes["H"], case.sizes["K"]
    if "documents" in case.options:
        lengths = case.options["documents"]

        def by_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
            return torch.cat([sdpa(a, b, c, is_causal=True) for a, b, c in parts], dim=2)

        return _in_heads(by_document)
    if "window" in case.options:
        return _by_blocks(case, problem)
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


def _by_blocks(case: Case, problem: Problem) -> Run:
    """A window in blocks of its own width: each sees itself and the block before, under a band."""
    w, S = case.options["window"], case.sizes["S"]
    device = problem.sets[0]["q"].device
    i, j = torch.arange(w, device=device).unsqueeze(1) + w, torch.arange(2 * w, device=device)
    band = ((j <= i) & (i - j < w))[:, 1:]  # the first key of the block before is never seen

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


def _nested(case: Case, problem: Problem) -> Run | None:
    if "documents" not in case.options:
        return None
    if problem.sets[0]["q"].device.type == "cpu":
        raise Unsupported("torch has no causal attention for nested tensors on the CPU")
    offsets = problem.extra["cu_seqlens"].long()
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


def _flex(case: Case, problem: Problem) -> Run | None:
    if "window" not in case.options and "documents" not in case.options:
        return None
    device = problem.sets[0]["q"].device
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


def naive_linear_cross_entropy(
    input: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(input, weight), target)


def _torch_linear_cross_entropy(case: Case, problem: Problem) -> Run:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unsupported(f"torch {torch.__version__} has none (2.13 and later do)")
    # Its default is the naive way, which is the implementation "torch"; the options ask for chunks.
    options = torch.nn.LinearCrossEntropyOptions()

    def run(input: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.linear_cross_entropy(input, weight, target, options=options)

    return run


def _torch_rms_norm(case: Case, problem: Problem) -> Run:
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


def _full_tables(case: Case, problem: Problem) -> list[torch.Tensor]:
    """cos and sin as Hugging Face models hand them out: (1,S,D), in the dtype of the model."""
    tables = (problem.extra["cos"], problem.extra["sin"])
    return [torch.cat([x, x], dim=-1).unsqueeze(0).to(DTYPES[case.dtype]) for x in tables]


def _rotate(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def _torch_rope(case: Case, problem: Problem) -> Run:
    cos, sin = (x.unsqueeze(1) for x in _full_tables(case, problem))
    return lambda q, k: (q * cos + _rotate(q) * sin, k * cos + _rotate(k) * sin)


def _torch_swiglu(case: Case, problem: Problem) -> Run:
    return lambda gate, up: F.silu(gate) * up


def _transformers_rms_norm(case: Case, problem: Problem) -> Run:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(case.sizes["E"], EPS)

    def run(input: torch.Tensor, weight: torch.Tensor, residual: Any = None) -> Any:
        norm.__dict__["weight"] = weight  # the case's tensor in place of a parameter
        x = input if residual is None else input + residual
        return norm(x) if residual is None else (norm(x), x)

    del norm._parameters["weight"]
    return run


def _transformers_rope(case: Case, problem: Problem) -> Run:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cos, sin = _full_tables(case, problem)
    return lambda q, k: apply_rotary_pos_emb(q, k, cos, sin)


def _transformers_swiglu(case: Case, problem: Problem) -> Run:
    from transformers.activations import ACT2FN

    act = ACT2FN["silu"]  # as LlamaMLP: down_proj(act_fn(gate) * up)
    return lambda gate, up: act(gate) * up


def _transformers_training(compiled: bool) -> Builder:
    def build(case: Case, problem: Problem) -> Run:
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
        device = problem.sets[0]["tokens"].device
        model = LlamaForCausalLM(config).to(device, DTYPES[case.dtype]).train()
        forward = torch.compile(model, dynamic=False) if compiled else model

        def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            # `shift_labels` are targets as they are, not to be shifted again.
            return forward(input_ids=tokens, labels=targets, shift_labels=targets).loss

        return optimizer_step(model, loss)

    return build


EAGER: dict[str, Builder] = {
    "attention": _sdpa,
    "attention_decode": _sdpa_decode,
    "cross_entropy": lambda case, problem: F.cross_entropy,
    "linear_cross_entropy": lambda case, problem: naive_linear_cross_entropy,
    "rms_norm": _torch_rms_norm,
    "rope": _torch_rope,
    "swiglu": _torch_swiglu,
}
# Compiled from the formula: what the compiler fuses is the baseline, not one more call of a kernel.
_FORMULAS = {op: build for op, build in EAGER.items() if "attention" not in op} | {
    "rms_norm": lambda case, problem: _rms_norm_formula
}


def _compiled(builders: dict[str, Builder], backend: str = "inductor") -> dict[str, Builder]:
    def one(build: Builder) -> Builder:
        def compiled(case: Case, problem: Problem) -> Run:
            return torch.compile(build(case, problem), dynamic=False, backend=backend)

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
        {"attention": _sdpa_by_hand, "attention_decode": _sdpa_decode_by_hand},
    ),
    Implementation("torch-nested", "SDPA on nested tensors", {"attention": _nested}),
    Implementation(
        "flex-attention",
        "torch's FlexAttention, compiled, for windows and packed documents",
        {"attention": _flex},
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
