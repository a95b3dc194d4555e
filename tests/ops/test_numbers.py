"""Options that are numbers: Python's, NumPy's and torch's scalars mean the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import llama_fast

G = torch.Generator().manual_seed(0)
X = torch.randn(1, 4, 2, 8, generator=G)
LOGITS, TARGET = torch.randn(4, 8, generator=G), torch.tensor([1, -7, 3, 0])
HELD = torch.tensor([3], dtype=torch.int32)


def _decode(**options: Any) -> Any:
    return llama_fast.attention_decode(X[:, :, :1], X, X, cache_seqlens=HELD[:1] * 0 + 2, **options)


def _linear_loss(**options: Any) -> Any:
    return llama_fast.linear_cross_entropy(LOGITS, LOGITS, TARGET.abs() % 4, **options)


def _loss(**options: Any) -> Any:
    return llama_fast.cross_entropy(LOGITS, TARGET, **{"ignore_index": -7, **options})


CALLS: dict[str, Callable[..., Any]] = {
    "attention": lambda **o: llama_fast.attention(X, X, X, **o),
    "attention_decode": _decode,
    "scaled_dot_product_attention": lambda **o: llama_fast.scaled_dot_product_attention(
        X, X, X, **o
    ),
    "cross_entropy": _loss,
    "linear_cross_entropy": _linear_loss,
    "rms_norm": lambda **o: llama_fast.rms_norm(LOGITS, LOGITS[0], **o),
    "flash_attn_func": lambda **o: llama_fast.flash_attn_func(X, X, X, **o),
    "flash_attn_with_kvcache": lambda **o: llama_fast.flash_attn_with_kvcache(X, X, X, **o),
}
REALS = [
    ("attention", "scale"),
    ("attention", "softcap"),
    ("attention", "dropout_p"),
    ("attention_decode", "scale"),
    ("attention_decode", "softcap"),
    ("scaled_dot_product_attention", "scale"),
    ("cross_entropy", "label_smoothing"),
    ("cross_entropy", "softcap"),
    ("cross_entropy", "z_loss"),
    ("linear_cross_entropy", "label_smoothing"),
    ("linear_cross_entropy", "softcap"),
    ("linear_cross_entropy", "z_loss"),
    ("rms_norm", "eps"),
    ("rms_norm", "offset"),
    ("flash_attn_func", "softmax_scale"),
    ("flash_attn_func", "softcap"),
    ("flash_attn_with_kvcache", "softmax_scale"),
    ("flash_attn_with_kvcache", "softcap"),
]
WINDOWS = [
    ("attention", "window"),
    ("attention_decode", "window"),
    ("flash_attn_func", "window_size"),
    ("flash_attn_with_kvcache", "window_size"),
]


@pytest.mark.parametrize(("op", "option"), REALS)
def test_real_numbers(op: str, option: str) -> None:
    def run(value: Any) -> torch.Tensor:
        torch.manual_seed(0)
        found = CALLS[op](**{option: value})
        assert isinstance(found, torch.Tensor)
        return found

    expected = run(0.25)
    for value in (np.float32(0.25), np.float64(0.25), np.array(0.25), torch.tensor(0.25),
                  torch.tensor(0.25, dtype=torch.bfloat16)):  # fmt: skip
        assert torch.equal(run(value), expected)
    for value in ("0.25", torch.tensor([0.25]), np.array([0.25]), 0.25j, torch.tensor(True)):
        with pytest.raises(TypeError, match=f"^{option}: expected a.* number.*, got"):
            run(value)
    with pytest.raises(
        ValueError, match=f"^{option}: expected a.* number.*, got a tensor that req"
    ):
        run(torch.tensor(0.25, requires_grad=True))
    if option != "offset":
        with pytest.raises(ValueError, match=f"^{option}: expected .* got nan"):
            run(np.float32("nan"))


@pytest.mark.parametrize(("op", "option"), WINDOWS)
def test_windows(op: str, option: str) -> None:
    def run(value: Any) -> torch.Tensor:
        return CALLS[op](**{option: value})

    expected = run((1, 0))
    for value in ([1, 0], torch.tensor([1, 0]), np.array([1, 0]), (np.int64(1), 0),
                  (torch.tensor(1), np.uint8(0))):  # fmt: skip
        assert torch.equal(run(value), expected)
    for value in (torch.tensor([1, 0, 0]), (1.0, 0), (True, 0), torch.tensor([1.0, 0.0]), "ab",
                  torch.tensor([[1, 0]]), np.array(True)):  # fmt: skip
        with pytest.raises(TypeError, match=f"^{option}: expected .*a pair of ints"):
            run(value)
    if option == "window":
        assert torch.equal(run(np.int64(2)), run(2))
        assert torch.equal(run(torch.tensor(2)), run(2))


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_ignored_index(op: str) -> None:
    expected = CALLS[op](ignore_index=-7)
    for value in (np.int64(-7), torch.tensor(-7)):
        assert torch.equal(CALLS[op](ignore_index=value), expected)
    for value in (-7.0, "a", True, torch.tensor([-7])):
        with pytest.raises(TypeError, match=r"^ignore_index: expected an int, got"):
            CALLS[op](ignore_index=value)


def test_compiled() -> None:
    """Scalars of torch and NumPy break the graph, and are right."""
    for options in (
        {"scale": torch.tensor(0.25), "window": torch.tensor([1, 0])},
        {"scale": np.float32(0.25), "window": (np.int64(1), 0)},
    ):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, o=options: llama_fast.attention(x, x, x, **o),
                                 backend="eager")  # fmt: skip
        torch.testing.assert_close(
            compiled(X), llama_fast.attention(X, X, X, scale=0.25, window=(1, 0))
        )
