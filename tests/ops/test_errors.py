"""Bad input: one error of the right type that names the argument, what was expected, what came."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.ops import _checks
from llama_fast.ops.backends import library
from llama_fast.reference.cross_entropy import CrossEntropyOptions

ops = torch.ops.llama_fast
Q, K, V = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 6, 8), torch.zeros(2, 2, 6, 3)
PACKED = {name: torch.zeros(5, 2, 8) for name in "qkv"} | {"cu_seqlens_q": torch.tensor([0, 2, 5])}
LOGITS, TARGET = torch.zeros(5, 7), torch.tensor([3, -100, 0, 6, 1])
X, W = torch.zeros(5, 8), torch.zeros(7, 8)
HALF_TABLE = torch.zeros(5, 4)

GOOD: dict[str, dict[str, Any]] = {
    "attention": {"q": Q, "k": K, "v": V},
    "scaled_dot_product_attention": {"query": Q, "key": Q, "value": Q},
    "cross_entropy": {"input": LOGITS, "target": TARGET},
    "linear_cross_entropy": {"input": X, "linear_weight": W, "target": TARGET},
    "rms_norm": {"input": X, "weight": torch.zeros(8)},
    "rope": {"q": Q, "k": Q, "cos": HALF_TABLE, "sin": HALF_TABLE},
    "swiglu": {"gate": X, "up": X},
}

# op, the bad arguments, type of the error, its message (a pattern).
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("attention", {"q": 3}, TypeError, "q: expected a tensor, got int"),
    ("attention", {"q": Q.int()}, TypeError, "q: expected float64, .* got torch.int32"),
    ("attention", {"q": Q[0]}, ValueError, r"q: expected shape \(B,H,S,D\), got \(4, 5, 8\)"),
    ("attention", {"k": K.double()}, TypeError, "k: expected .* torch.float32, got torch.float64"),
    ("attention", {"v": V.half()}, TypeError, "v: expected .* torch.float32, got torch.float16"),
    ("attention", {"k": K[..., :7], "v": V}, ValueError, "k: expected .* 8, got 7"),
    ("attention", {"v": V[:, :, :5]}, ValueError, r"v: expected .* got \(2, 2, 5, 3\)"),
    ("attention", {"k": K[:1], "v": V[:1]}, ValueError, "k: expected .* 2, got 1"),
    ("attention", {"q": Q[:, :3]}, ValueError, "k: expected .* 3 heads of q, got 2"),
    ("attention", {"k": K.to("meta")}, ValueError, "k: expected .* cpu, got meta"),
    ("attention", {"window": 0}, ValueError, "window: expected .* got 0"),
    ("attention", {"window": (1, -2)}, ValueError, r"window: expected .* got \(1, -2\)"),
    ("attention", {"window": 1.5}, TypeError, "window: expected .* got 1.5"),
    ("attention", {"scale": float("nan")}, ValueError, "scale: expected .* got nan"),
    ("attention", {"softcap": 0.0}, ValueError, "softcap: expected .* got 0.0"),
    ("attention", {"softcap": -1.0}, ValueError, "softcap: expected .* got -1.0"),
    ("attention", {"dropout_p": 1.5}, ValueError, "dropout_p: expected .* got 1.5"),
    ("attention", {"dropout_p": -0.1}, ValueError, "dropout_p: expected .* got -0.1"),
    ("attention", {"bias": torch.zeros(5, 7)}, ValueError, r"bias: expected .* got \(5, 7\)"),
    ("attention", {"bias": torch.zeros(1, 2, 4, 5, 6)}, ValueError, "bias: expected .* got"),
    ("attention", {"bias": torch.zeros(5, 6).int()}, TypeError, "bias: expected .* torch.int32"),
    ("attention", {"key_padding_mask": torch.zeros(2, 6)}, TypeError,
     "key_padding_mask: expected bool, got torch.float32"),
    ("attention", {"key_padding_mask": torch.zeros(2, 5).bool()}, ValueError,
     r"key_padding_mask: expected .*\(2, 6\), got \(2, 5\)"),
    ("attention", {"alibi_slopes": torch.zeros(3)}, ValueError,
     r"alibi_slopes: expected .* got \(3,\)"),
    ("attention", {"alibi_slopes": torch.zeros(4).long()}, TypeError, "alibi_slopes: expected .* "
     "got torch.int64"),
    ("attention", {"sinks": torch.zeros(2)}, ValueError, r"sinks: expected .*\(4,\), got \(2,\)"),
    ("attention", {"cu_seqlens_k": torch.tensor([0, 5])}, ValueError, "cu_seqlens_q: expected .* "
     "got None"),
    ("attention", {**PACKED, "bias": torch.zeros(5, 5)}, ValueError, "bias: expected None .*pack"),
    ("attention", {**PACKED, "key_padding_mask": torch.zeros(1, 5).bool()}, ValueError,
     "key_padding_mask: expected None .*packed"),
    ("attention", {**PACKED, "q": Q}, ValueError, r"q: expected shape \(N,H,D\), got"),
    ("attention", {**PACKED, "cu_seqlens_q": torch.tensor([0, 2, 4])}, ValueError,
     "cu_seqlens_q: expected .* 5, got 0 to 4"),
    ("attention", {**PACKED, "cu_seqlens_q": torch.tensor([0, 4, 2, 5])}, ValueError,
     "cu_seqlens_q: expected .* got 4 then 2 at position 2"),
    ("attention", {**PACKED, "cu_seqlens_q": torch.tensor([0.0, 5.0])}, TypeError,
     "cu_seqlens_q: expected int32 or int64, got torch.float32"),
    ("attention", {**PACKED, "cu_seqlens_q": torch.tensor(5)}, ValueError,
     r"cu_seqlens_q: expected .* got \(\)"),
    ("attention", {**PACKED, "cu_seqlens_k": torch.tensor([0, 1, 2, 5])}, ValueError,
     "cu_seqlens_k: expected .* 3, got 4"),
    ("scaled_dot_product_attention", {"query": Q.int()}, TypeError, "query: expected .*int32"),
    ("scaled_dot_product_attention", {"key": torch.zeros(8)}, ValueError,
     r"key: expected .* got \(8,\)"),
    ("scaled_dot_product_attention", {"is_causal": True, "attn_mask": torch.zeros(5, 5)},
     ValueError, "attn_mask: expected None .*is_causal"),
    ("cross_entropy", {"input": [1.0]}, TypeError, "input: expected a tensor, got list"),
    ("cross_entropy", {"input": LOGITS.int()}, TypeError, "input: expected .* got torch.int32"),
    ("cross_entropy", {"input": LOGITS.sum()}, ValueError, r"input: expected .* got \(\)"),
    ("cross_entropy", {"target": 3}, TypeError, "target: expected .* got int"),
    ("cross_entropy", {"target": TARGET.bool()}, TypeError, "target: expected .* got torch.bool"),
    ("cross_entropy", {"target": TARGET[:4]}, ValueError,
     r"target: expected .*\(5,\).* got \(4,\)"),
    ("cross_entropy", {"target": torch.zeros(5, 6)}, ValueError,
     r"target: expected .*\(5, 7\).* got \(5, 6\)"),
    ("cross_entropy", {"target": TARGET.to("meta")}, ValueError,
     "target: expected .* cpu, got meta"),
    ("cross_entropy", {"target": torch.tensor([3, 0, 7, 1, 1])}, IndexError,
     r"target: expected .*\[0, 7\).* got 7 at position \(2,\)"),
    ("cross_entropy", {"target": torch.tensor([3, 0, 1, 1, -1])}, IndexError,
     r"target: expected .*\[0, 7\).* got -1 at position \(4,\)"),
    ("cross_entropy", {"target": torch.tensor([3, 0, 1, 1, -100]), "ignore_index": 2}, IndexError,
     r"target: expected .*\[0, 7\).* got -100 at position \(4,\)"),
    ("cross_entropy", {"weight": torch.zeros(6)}, ValueError,
     r"weight: expected .*\(7,\).* got \(6,\)"),
    ("cross_entropy", {"weight": torch.zeros(7).int()}, TypeError, "weight: expected .*int32"),
    ("cross_entropy", {"weight": torch.zeros(7, requires_grad=True)}, ValueError,
     "weight: expected .* not require grad"),
    ("cross_entropy", {"reduction": "average"}, ValueError,
     "reduction: expected one of none, mean, sum, got 'average'"),
    ("cross_entropy", {"label_smoothing": 1.1}, ValueError, "label_smoothing: expected .* got 1.1"),
    ("cross_entropy", {"label_smoothing": -0.1}, ValueError, "label_smoothing: .* got -0.1"),
    ("cross_entropy", {"softcap": 0.0}, ValueError, "softcap: expected .* got 0.0"),
    ("cross_entropy", {"z_loss": -1.0}, ValueError, "z_loss: expected .* got -1.0"),
    ("cross_entropy", {"target": LOGITS, "ignore_index": 3}, ValueError,
     "ignore_index: expected .* got 3"),
    ("linear_cross_entropy", {"input": None}, TypeError, "input: expected a tensor, got NoneType"),
    ("linear_cross_entropy", {"input": X.sum()}, ValueError, r"input: expected .* got \(\)"),
    ("linear_cross_entropy", {"linear_weight": W[:, :7]}, ValueError,
     r"linear_weight: expected .*\(V, 8\), got \(7, 7\)"),
    ("linear_cross_entropy", {"linear_weight": W[0]}, ValueError,
     r"linear_weight: expected .* got \(8,\)"),
    ("linear_cross_entropy", {"linear_weight": W.half()}, TypeError,
     "linear_weight: expected .* torch.float32, got torch.float16"),
    ("linear_cross_entropy", {"target": TARGET.float()}, TypeError,
     "target: expected .* got torch.float32"),
    ("linear_cross_entropy", {"target": TARGET[:4]}, ValueError,
     r"target: expected .*\(5,\).* got \(4,\)"),
    ("linear_cross_entropy", {"target": torch.tensor([3, 0, 7, 1, 1])}, IndexError,
     r"target: expected .*\[0, 7\).* got 7 at position \(2,\)"),
    ("linear_cross_entropy", {"linear_bias": torch.zeros(6)}, ValueError,
     r"linear_bias: expected .*\(7,\), got \(6,\)"),
    ("linear_cross_entropy", {"linear_bias": torch.zeros(7).half()}, TypeError,
     "linear_bias: expected .* got torch.float16"),
    ("linear_cross_entropy", {"weight": torch.zeros(8)}, ValueError,
     r"weight: expected .*\(7,\), got \(8,\)"),
    ("linear_cross_entropy", {"weight": torch.zeros(7, requires_grad=True)}, ValueError,
     "weight: expected .* not require grad"),
    ("linear_cross_entropy", {"reduction": 1}, ValueError, "reduction: expected .* got 1"),
    ("linear_cross_entropy", {"label_smoothing": 2}, ValueError, "label_smoothing: .* got 2"),
    ("linear_cross_entropy", {"softcap": -1.0}, ValueError, "softcap: expected .* got -1.0"),
    ("linear_cross_entropy", {"z_loss": -1.0}, ValueError, "z_loss: expected .* got -1.0"),
    ("linear_cross_entropy", {"input": X[0], "target": TARGET[0], "shift": True}, ValueError,
     r"input: expected .*shift=True, got \(8,\)"),
    ("rms_norm", {"input": 1.0}, TypeError, "input: expected a tensor, got float"),
    ("rms_norm", {"input": X.sum()}, ValueError, r"input: expected .* got \(\)"),
    ("rms_norm", {"weight": torch.zeros(7)}, ValueError,
     r"weight: expected .*\(8,\), got \(7,\)"),
    ("rms_norm", {"weight": torch.zeros(8).int()}, TypeError, "weight: expected .*int32"),
    ("rms_norm", {"weight": torch.zeros(8, device="meta")}, ValueError, "weight: .* got meta"),
    ("rms_norm", {"residual": X[:4]}, ValueError, r"residual: expected .*\(5, 8\), got \(4, 8\)"),
    ("rms_norm", {"residual": X.int()}, TypeError, "residual: expected .* got torch.int32"),
    ("rms_norm", {"residual": X.to("meta")}, ValueError, "residual: expected .* cpu, got meta"),
    ("rms_norm", {"eps": -1e-6}, ValueError, "eps: expected .* got -1e-06"),
    ("rope", {"q": Q.int()}, TypeError, "q: expected .* got torch.int32"),
    ("rope", {"q": Q[0]}, ValueError, r"q: expected shape \(B,H,S,D\), got \(4, 5, 8\)"),
    ("rope", {"q": Q[..., :7], "k": Q[..., :7]}, ValueError, r"q: .*even D, got \(2, 4, 5, 7\)"),
    ("rope", {"k": Q[:, :, :4]}, ValueError, r"k: expected .* got \(2, 4, 4, 8\)"),
    ("rope", {"k": Q.half()}, TypeError, "k: expected .* torch.float32, got torch.float16"),
    ("rope", {"cos": HALF_TABLE[:4]}, ValueError, r"cos: expected .*\(5, 4\).* got \(4, 4\)"),
    ("rope", {"sin": torch.zeros(2, 5, 4)}, ValueError,
     r"sin: expected .*\(5, 4\), got \(2, 5, 4\)"),
    ("swiglu", {"gate": X.int()}, TypeError, "gate: expected .* got torch.int32"),
    ("swiglu", {"up": X[:4]}, ValueError, r"up: expected .*\(5, 8\), got \(4, 8\)"),
    ("swiglu", {"up": X.half()}, TypeError, "up: expected .* got torch.float16"),
]  # fmt: skip


def describe(bad: tuple[str, dict[str, Any], type[Exception], str]) -> str:
    op, _, _, message = bad
    return f"{op} {re.sub(r'[^A-Za-z0-9 _-]', '', message)}".replace(" ", "-")


@pytest.mark.parametrize("reference", (False, True), ids=["", "reference"])
@pytest.mark.parametrize("bad", BAD, ids=describe)
def test_message(bad: tuple[str, dict[str, Any], type[Exception], str], reference: bool) -> None:
    """The same error on every backend: the arguments are checked before one is chosen."""
    op, arguments, error, message = bad
    call = getattr(llama_fast, op)
    backend = llama_fast.use_backend("reference" if reference else "auto")
    with backend, pytest.raises(error, match=f"^{message}"):
        call(**{**GOOD[op], **arguments})


@pytest.mark.parametrize("op", GOOD)
def test_the_arguments_that_the_bad_ones_replace_are_good(op: str) -> None:
    getattr(llama_fast, op)(**GOOD[op])


def test_position_of_a_bad_target_among_trailing_dimensions() -> None:
    target = torch.zeros(2, 3, 4, dtype=torch.int64)
    target[1, 2, 3] = 99
    with pytest.raises(IndexError, match=r"got 99 at position \(1, 2, 3\)"):
        llama_fast.cross_entropy(torch.zeros(2, 5, 3, 4), target)


@pytest.mark.skipif(library.missing_reason is not None, reason="nothing was compiled")
@pytest.mark.parametrize("tokens", [(), (3,), (2, 3, 4)], ids=str)
def test_compiled_kernels_raise_what_the_checks_in_python_raise(tokens: tuple[int, ...]) -> None:
    """Of the same type, in the same words; a compiled graph has the kernels' checks only."""
    shape = (*tokens[:1], 5, *tokens[1:])
    target = torch.full(tokens, -100)
    target.view(-1)[-1] = 99
    errors = []
    for call in (
        lambda: _checks.check_targets(target, 5, -100),
        lambda: ops.cross_entropy(torch.zeros(shape), target, *CrossEntropyOptions(), False),
        lambda: ops.linear_cross_entropy(
            torch.zeros(target.numel(), 2), torch.zeros(5, 2), target.flatten(), None, None,
            *CrossEntropyOptions(), False, 0,
        ),
    ):  # fmt: skip
        with pytest.raises(IndexError) as caught:
            call()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert errors[0].partition(" at position")[0] == errors[2].partition(" at position")[0]


@pytest.mark.skipif(library.missing_reason is not None, reason="nothing was compiled")
def test_compiled_kernels_raise_value_errors() -> None:
    # as a graph of torch.compile calls them
    q, offsets = torch.zeros(4, 2, 8), torch.tensor([0, 3, 2, 4])
    arguments = (q, q, q, *(None,) * 4, offsets, offsets, None, False, -1, -1, 1.0, 0.0, 0.0)
    message = r"^cu_seqlens_q: expected offsets .* got 3 then 2"
    # torch from 2.15 on makes a RuntimeError of it
    with pytest.raises((ValueError, RuntimeError), match=message) as caught:
        ops.attention(*arguments)
    error = caught.value
    with pytest.raises(ValueError, match=message):
        raise library.own_error(error) if isinstance(error, RuntimeError) else error


def test_only_value_errors_of_kernels_are_told_apart() -> None:
    own = RuntimeError("cache_seqlens: expected lengths in [0, 16), got 16 at position 1")
    assert type(library.own_error(own)) is ValueError and str(library.own_error(own)) == str(own)
    for message in ("llama_fast: expected at most 6 dimensions", "not enough memory", "x: failed"):
        other = RuntimeError(message)
        assert library.own_error(other) is other


def test_the_torch_backend_names_what_torch_lacks() -> None:
    cases = [
        ("attention", {"softcap": 2.0}),
        ("attention", {"sinks": torch.zeros(4)}),
        ("attention", {"return_lse": True}),
        ("cross_entropy", {"softcap": 2.0}),
        ("cross_entropy", {"z_loss": 0.1}),
        ("cross_entropy", {"return_stats": True}),
        ("linear_cross_entropy", {"softcap": 2.0}),
    ]
    for op, option in cases:
        with (
            llama_fast.use_backend("torch"),
            pytest.raises(ValueError, match=f"^{next(iter(option))}: "),
        ):
            getattr(llama_fast, op)(**{**GOOD[op], **option})
