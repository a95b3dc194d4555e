"""Tensor subclasses as arguments: those whose memory is their values, and those whose is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import llama_fast
from llama_fast.ops.linear import linear

G = torch.Generator().manual_seed(0)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G)


class Plain(torch.Tensor):
    """Its memory is its values."""


class Seen(torch.Tensor):
    """The same, and watches torch's functions."""

    calls: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Elsewhere(torch.Tensor):
    """Its values are in `held`; its memory means nothing."""

    held: torch.Tensor

    @staticmethod
    def of(values: torch.Tensor) -> Elsewhere:
        wrapper = torch.zeros_like(values).as_subclass(Elsewhere)
        wrapper.held = values
        return wrapper

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def held(value: Any) -> Any:
            return value.held if isinstance(value, Elsewhere) else value

        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = torch.utils._pytree.tree_map(held, (args, kwargs or {}))
            return func(*args, **kwargs)


class Wrapped(torch.Tensor):
    """Without memory; knows the dispatcher's operators."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(values: torch.Tensor) -> Wrapped:
        wrapper = torch.Tensor._make_wrapper_subclass(
            Wrapped, values.shape, dtype=values.dtype, strides=values.stride()
        )
        wrapper.held = values
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def held(value: Any) -> Any:
            return value.held if isinstance(value, Wrapped) else value

        args, kwargs = torch.utils._pytree.tree_map(held, (args, kwargs or {}))
        return func(*args, **kwargs)


Q, K = _random(1, 2, 3, 4), _random(1, 2, 5, 4)
X, W = _random(5, 6), _random(4, 6)
TARGET = torch.tensor([0, 2, 3, 1, 3])
OFFSETS = torch.tensor([0, 2, 3], dtype=torch.int32)
# op -> its tensors
CALLS: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor]]] = {
    "attention": (
        llama_fast.attention,
        {"q": Q, "k": K, "v": K + 1, "bias": _random(3, 5), "alibi_slopes": _random(2),
         "key_padding_mask": torch.tensor([[False, True, False, False, False]]),
         "sinks": _random(2)},
    ),
    "packed attention": (
        llama_fast.attention,
        {"q": Q[0].mT.mT.transpose(0, 1), "k": K[0, :, :3].transpose(0, 1),
         "v": K[0, :, 2:].transpose(0, 1), "cu_seqlens_q": OFFSETS, "cu_seqlens_k": OFFSETS + 0},
    ),
    "scaled_dot_product_attention": (
        llama_fast.scaled_dot_product_attention,
        {"query": Q, "key": K, "value": K + 1, "attn_mask": _random(3, 5)},
    ),
    "attention_decode": (
        llama_fast.attention_decode,
        {"q": Q[:, :, :1], "k_cache": K, "v_cache": K + 1, "k": Q[:, :, 1:2], "v": Q[:, :, 2:],
         "cache_seqlens": torch.tensor([2], dtype=torch.int32)},
    ),
    "cross_entropy": (
        llama_fast.cross_entropy, {"input": X, "target": TARGET, "weight": _random(6).abs()}
    ),
    "cross_entropy of probabilities": (
        llama_fast.cross_entropy, {"input": X, "target": X.softmax(-1)}
    ),
    "linear_cross_entropy": (
        llama_fast.linear_cross_entropy,
        {"input": X, "linear_weight": W, "target": TARGET, "linear_bias": _random(4),
         "weight": _random(4).abs()},
    ),
    "rms_norm": (llama_fast.rms_norm, {"input": X, "weight": W[0], "residual": X + 1}),
    "rope": (
        llama_fast.rope, {"q": Q, "k": K[:, :, :3], "cos": _random(3, 2), "sin": _random(3, 2)}
    ),
    "swiglu": (llama_fast.swiglu, {"gate": X, "up": X + 1}),
    "linear": (linear, {"input": X, "weight": W, "bias": _random(4)}),
}  # fmt: skip
ARGUMENTS = [(op, name) for op, (_, tensors) in CALLS.items() for name in tensors]


def _leaves(value: Any) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_every_tensor_argument(op: str, name: str) -> None:
    function, tensors = CALLS[op]

    def run(change: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        given = {n: t.clone() for n, t in tensors.items()}
        given[name] = change(given[name])
        return _leaves(function(**given))

    expected = run(lambda t: t)

    def check(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for ours, want in zip(run(change), expected, strict=True):
            torch.testing.assert_close(ours.as_subclass(torch.Tensor), want)

    check(lambda t: torch.nn.Parameter(t, requires_grad=False))
    check(torch.nn.Buffer)
    check(lambda t: t.as_subclass(Plain))
    Seen.calls.clear()
    check(lambda t: t.as_subclass(Seen))
    assert function in Seen.calls
    check(Elsewhere.of)
    if name in ("cu_seqlens_q", "cu_seqlens_k", "cache_seqlens"):  # numbers that the host reads
        with pytest.raises(RuntimeError, match="not supported for tensor subclasses, got Wrapped"):
            run(Wrapped.of)
    else:
        check(Wrapped.of)
    if name not in ("bias", "attn_mask") and op != "linear":
        with pytest.raises(TypeError, match=f"^{name}: expected .*CausalBias"):
            run(lambda t: causal_upper_left(3, 5))


SIZES = ((6, 6), (3, 6), (6, 3), (1, 4))


@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs")
def test_causal_bias(make: Callable[..., Any], queries: int, keys: int) -> None:
    """As the mask that it describes, with every other option of attention."""
    q, k = _random(2, 4, queries, 8), _random(2, 2, keys, 8)
    bias = make(queries, keys)
    mask = bias._materialize()
    padding = torch.zeros(2, keys, dtype=torch.bool)
    padding[1, 0] = True
    for options in (
        {},
        {"causal": True},
        {"window": 2},
        {"window": (1, 2)},
        {"window": (-1, 5), "alibi_slopes": torch.rand(4)},
        {"key_padding_mask": padding, "sinks": torch.rand(4)},
    ):
        result = llama_fast.attention(q, k, k, bias=bias, **options)
        expected = llama_fast.attention(q, k, k, bias=mask, **options)
        torch.testing.assert_close(result, expected)
    result = llama_fast.scaled_dot_product_attention(q, k, k, bias, enable_gqa=True)
    expected = llama_fast.scaled_dot_product_attention(q, k, k, mask, enable_gqa=True)
    torch.testing.assert_close(result, expected)
    if queries <= keys:  # else torch gives NaN in rows that see nothing
        k = k.repeat_interleave(2, 1)
        torch.testing.assert_close(result, F.scaled_dot_product_attention(q, k, k, bias))
    if make is causal_lower_right or queries == keys:  # no mask at all in memory
        plain = llama_fast.attention(q, k, k, causal=True)
        assert torch.equal(llama_fast.attention(q, k, k, bias=bias), plain)


def test_causal_bias_that_does_not_fit() -> None:
    q = _random(1, 2, 4, 8)
    with pytest.raises(ValueError, match=r"^bias: expected a CausalBias of 4 queries and 4 keys"):
        llama_fast.attention(q, q, q, bias=causal_upper_left(6, 6))
    with pytest.raises(ValueError, match=r"^attn_mask: .* got one of 6 and 4"):
        llama_fast.scaled_dot_product_attention(q, q, q, causal_upper_left(6, 4))
    with pytest.raises(ValueError, match=r"^attn_mask: expected None with is_causal=True"):
        llama_fast.scaled_dot_product_attention(q, q, q, causal_upper_left(4, 4), is_causal=True)
    with llama_fast.accelerate():  # torch does not look at the size of a square one
        torch.testing.assert_close(
            F.scaled_dot_product_attention(q, q, q, causal_upper_left(4, 4)),
            F.scaled_dot_product_attention(q, q, q, is_causal=True),
        )


def test_gradients_through_a_causal_bias() -> None:
    q = _random(1, 2, 4, 8).double().requires_grad_()
    for bias, k in ((causal_upper_left(4, 6), _random(1, 2, 6, 8).double()),
                    (causal_lower_right(4, 6), _random(1, 2, 6, 8).double())):  # fmt: skip
        out = llama_fast.scaled_dot_product_attention(q, k, k, bias)
        (grad,) = torch.autograd.grad(out.square().sum(), q)
        out = F.scaled_dot_product_attention(q, k, k, bias._materialize())
        (expected,) = torch.autograd.grad(out.square().sum(), q)
        torch.testing.assert_close(grad, expected)


def test_memory_that_is_not_plain() -> None:
    """A negated view is read as what it is; layouts without strides are refused."""
    for op, (function, tensors) in CALLS.items():
        for name, t in tensors.items():
            if not t.is_floating_point():
                continue
            expected = _leaves(function(**{n: v.clone() for n, v in tensors.items()}))
            given = {n: v.clone() for n, v in tensors.items()}
            if not name.endswith("_cache"):
                changed = {**given, name: torch._neg_view(-given[name])}
                for ours, want in zip(_leaves(function(**changed)), expected, strict=True):
                    torch.testing.assert_close(ours, want)
            if op != "linear":
                with pytest.raises((RuntimeError, NotImplementedError)):
                    function(**{**given, name: given[name].to_sparse()})
