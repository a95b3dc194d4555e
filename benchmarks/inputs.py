"""The input tensors of a case, and the upstream gradients of its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .cases import DTYPES, STEP, Case

Tensors = dict[str, torch.Tensor]


@dataclass
class Inputs:
    """Inputs of one case.

    Attributes:
        sets: dictionaries of the op's arguments; several alternate (in decoding, one per layer).
        leaves: names of the arguments that require gradients, the data first.
        extra: tensors from which implementations build masks; not arguments of the op.
        grads: upstream gradients of the outputs; None for a scalar loss.
        untouched: copies of the arguments that some implementations overwrite.
    """

    sets: list[Tensors]
    leaves: tuple[str, ...] = ()
    extra: Tensors = field(default_factory=dict)
    grads: tuple[torch.Tensor, ...] | None = None
    untouched: Tensors = field(default_factory=dict)


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Draw the tensors of `case`; they are the same at each call."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = DTYPES[case.dtype]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    def classes(*shape: int) -> torch.Tensor:
        return torch.randint(case.sizes["V"], shape, generator=generator, device=device)

    inputs = {
        "attention": _attention,
        "attention_decode": _attention_decode,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": _linear_cross_entropy,
        "rms_norm": _rms_norm,
        "rope": _rope,
        "swiglu": _swiglu,
        "llama_training": _training,
    }[case.op](case, normal, classes)
    for tensors in inputs.sets:
        for name in inputs.leaves:
            tensors[name].requires_grad_(case.backward)
    if case.mode == STEP:
        inputs.leaves = ()
    return inputs


def _attention(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    B, S, T, D, H, K = (case.sizes[n] for n in "BSTDHK")
    leaves = ("q", "k", "v")
    shapes: dict[str, tuple[int, ...]]
    if "documents" in case.options:  # (N,H,D), the layout of projections
        shapes = {"q": (S, H, D), "k": (T, K, D), "v": (T, K, D)}
    else:
        shapes = {"q": (B, H, S, D), "k": (B, K, T, D), "v": (B, K, T, D)}
    sets = [
        {name: normal(*shape) for name, shape in shapes.items()}
        for _ in range(case.options.get("copies", 1))
    ]
    grad = normal(*shapes["q"])
    extra = {}
    if "documents" in case.options:
        lengths = torch.tensor([0, *case.options["documents"]], device=grad.device)
        extra["cu_seqlens"] = lengths.cumsum(0).to(torch.int32)
    if "bias" in case.options:
        extra["bias"] = normal(H, S, T)
    if "lengths" in case.options:
        lengths = torch.tensor(case.options["lengths"], device=grad.device)
        extra["key_padding_mask"] = torch.arange(T, device=grad.device) >= lengths.unsqueeze(1)
    return Inputs(sets, leaves, extra, (grad,))


def _attention_decode(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    B, S, T, D, H, K = (case.sizes[n] for n in "BSTDHK")
    page = case.options["page"]
    cache = (B * -(-T // page), K, page, D) if page else (B, K, T, D)
    shapes = {"q": (B, H, S, D), "k_cache": cache, "v_cache": cache}
    shapes |= {"k": (B, K, S, D), "v": (B, K, S, D)}
    sets = [
        {name: normal(*shape) for name, shape in shapes.items()}
        for _ in range(case.options["copies"])
    ]
    device = sets[0]["q"].device
    extra = {"cache_seqlens": torch.full((B,), T - S, dtype=torch.int32, device=device)}
    if page:  # in random order, as after some use
        pages = torch.randperm(cache[0], generator=torch.Generator().manual_seed(0))
        extra["page_table"] = pages.view(B, -1).to(device, torch.int32)
    return Inputs(sets, extra=extra)


def _cross_entropy(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    N, V = case.sizes["N"], case.sizes["V"]
    logits = normal(N, V)
    untouched = {"logits": logits.clone()}
    return Inputs([{"logits": logits, "target": classes(N)}], ("logits",), untouched=untouched)


def _linear_cross_entropy(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    N, E, V = (case.sizes[n] for n in "NEV")
    target = classes(N)
    ignored = int(N * case.options.get("ignored", 0.0))
    if ignored:  # prompts are contiguous, one before each answer
        rows = torch.arange(N, device=target.device).view(4, -1)
        target[rows[:, : ignored // 4].flatten()] = -100
    tensors = {"input": normal(N, E), "weight": normal(V, E) * E**-0.5, "target": target}
    return Inputs([tensors], ("input", "weight"))


def _rms_norm(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    N, E = case.sizes["N"], case.sizes["E"]
    tensors = {"input": normal(N, E), "weight": normal(E)}
    if not case.options.get("residual"):
        return Inputs([tensors], ("input", "weight"), grads=(normal(N, E),))
    tensors["residual"] = normal(N, E)
    grads = (normal(N, E), normal(N, E))
    return Inputs([tensors], ("input", "weight", "residual"), grads=grads)


def _rope(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    B, H, K, S, D = (case.sizes[n] for n in "BHKSD")
    tensors = {"q": normal(B, H, S, D), "k": normal(B, K, S, D)}
    device = tensors["q"].device
    frequencies = 10000.0 ** (-torch.arange(0, D, 2, device=device, dtype=torch.float64) / D)
    angles = torch.arange(S, device=device, dtype=torch.float64).unsqueeze(1) * frequencies
    tables = {"cos": angles.cos().float(), "sin": angles.sin().float()}  # (S,D/2)
    return Inputs([tensors], ("q", "k"), tables, (normal(B, H, S, D), normal(B, K, S, D)))


def _swiglu(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    N, F = case.sizes["N"], case.sizes["F"]
    return Inputs(
        [{"gate": normal(N, F), "up": normal(N, F)}], ("gate", "up"), grads=(normal(N, F),)
    )


def _training(case, normal, classes) -> Inputs:  # type: ignore[no-untyped-def]
    tokens = classes(case.sizes["B"], case.sizes["S"] + 1)
    return Inputs([{"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}])
