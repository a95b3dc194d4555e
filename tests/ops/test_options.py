"""The options types of the ops: the operators' order, and use under torch's transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import llama_fast
from llama_fast import reference
from llama_fast.reference import AttentionDecodeOptions, AttentionOptions, CrossEntropyOptions

Tensor = torch.Tensor
needs_kernel = pytest.mark.skipif(
    "cpu" not in llama_fast.backends().available["attention"], reason="no compiled kernel"
)


@pytest.mark.parametrize(
    ("operator", "before", "options", "after"),
    [
        ("attention", 3, AttentionOptions, 0),
        ("attention_backward", 8, AttentionOptions, 1),
        ("attention_decode", 3, AttentionDecodeOptions, 0),
        ("cross_entropy", 2, CrossEntropyOptions, 1),
        ("cross_entropy_backward", 4, CrossEntropyOptions, 1),
        ("cross_entropy_inplace", 2, CrossEntropyOptions, 1),
        ("linear_cross_entropy", 5, CrossEntropyOptions, 3),
        ("linear_cross_entropy_chunked", 5, CrossEntropyOptions, 4),
    ],
)
def test_fields_are_the_operators_arguments(
    operator: str, before: int, options: type[Any], after: int
) -> None:
    schema = getattr(torch.ops.llama_fast, operator).default._schema
    names = [argument.name for argument in schema.arguments]
    assert tuple(names[before : len(names) - after]) == options._fields


def tensors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, n, 8, generator=g) for h, n in ((4, 5), (2, 7), (2, 7)))
    return q, k, v


OPTIONS = AttentionOptions(
    bias=torch.randn(1, 1, 5, 7),
    alibi_slopes=torch.rand(1, 4),
    sinks=torch.randn(4),
    causal=True,
    window_left=4,
    scale=0.3,
    softcap=2.0,
)


@needs_kernel
def test_the_operator_takes_them() -> None:
    q, k, v = tensors()
    out, lse, _ = torch.ops.llama_fast.attention(q, k, v, *OPTIONS)
    for ours, expected in zip((out, lse), reference.attention(q, k, v, OPTIONS), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("causal", "right", "window"), [(False, 3, (4, 3)), (True, 3, (4, 0)), (False, -1, (4, -1))]
)
def test_causal_excludes_all_keys_to_the_right(
    causal: bool, right: int, window: tuple[int, int]
) -> None:
    options = AttentionOptions(causal=causal, window_left=4, window_right=right)
    assert options.window == window


@needs_kernel
@pytest.mark.compile
def test_torch_compile_traces_them() -> None:
    """As an argument, built inside, and read through their property; without a graph break."""

    def function(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Any:
        own = AttentionOptions(causal=options.causal, scale=options.scale)
        assert own.window == (-1, 0)
        out, lse, _ = torch.ops.llama_fast.attention(q, k, v, *options)
        return out, lse, reference.attention(q, k, v, own._replace(bias=options.bias))

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    arguments = (*tensors(), OPTIONS)
    torch.testing.assert_close(compiled(*arguments), function(*arguments))


def test_transforms_reach_their_tensors() -> None:
    """torch.func differentiates and maps what is inside the tuple."""
    q, k, v = tensors()

    def loss(options: AttentionOptions) -> Tensor:
        out, lse = reference.attention(q, k, v, options)
        return out.square().sum() + lse.sum()

    def gradient_of_bias(options: AttentionOptions) -> Tensor:
        return torch.func.grad(lambda bias: loss(options._replace(bias=bias)))(options.bias)

    biases = torch.randn(2, 1, 1, 5, 7)
    mapped = AttentionOptions(*[None] * len(AttentionOptions._fields))._replace(bias=0)
    grads = torch.func.vmap(gradient_of_bias, in_dims=(mapped,))(OPTIONS._replace(bias=biases))
    for bias, grad in zip(biases, grads, strict=True):
        leaf = bias.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(OPTIONS._replace(bias=leaf)), leaf)
        torch.testing.assert_close(grad, expected)


@pytest.mark.compile
def test_options_of_cross_entropy_are_traced_and_split() -> None:
    """Built inside a compiled graph and handed to the operator; flat, they are split again."""
    x, target, weight = torch.randn(5, 7), torch.tensor([3, -100, 0, 6, 1]), torch.rand(7)

    def function(x: Tensor, weight: Tensor) -> Any:
        options = CrossEntropyOptions(weight, label_smoothing=0.1, softcap=2.0, z_loss=0.01)
        again, others = CrossEntropyOptions.split((*options, "behind"))
        assert others == ("behind",) and again.ignore_index == -100
        loss, lse, _, _ = torch.ops.llama_fast.cross_entropy(x, target, *again, True)
        return loss, lse, reference.cross_entropy(x, target, options, return_stats=True)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    loss, lse, (expected, stats) = compiled(x, weight)
    torch.testing.assert_close((loss, lse.float()), (expected, stats.lse), rtol=1e-5, atol=1e-5)


def test_transforms_reach_the_weight_of_cross_entropy() -> None:
    x, target, weights = torch.randn(5, 7), torch.tensor([3, 2, 0, 6, 1]), torch.rand(4, 7)

    def loss(options: CrossEntropyOptions) -> Tensor:
        return reference.cross_entropy(x, target, options)

    mapped = CrossEntropyOptions(*[None] * 6)._replace(weight=0)
    losses = torch.func.vmap(loss, in_dims=(mapped,))(CrossEntropyOptions(weights))
    expected = torch.stack([loss(CrossEntropyOptions(weight)) for weight in weights])
    torch.testing.assert_close(losses, expected)
