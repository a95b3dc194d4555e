"""The reference against torch's own functions, and against loops that follow the definitions.

Every other test trusts the reference in float64. Here it is float64 too, and what remains are
roundings: assert_close's own bounds for that dtype.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llama_fast import reference
from llama_fast.reference import AttentionOptions, CrossEntropyOptions
from llama_fast.reference.cross_entropy import REDUCTIONS
from tests.ops.criterion import served_by

Tensor = torch.Tensor


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def attention_by_loops(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, softcap: float, left: int, right: int,
    bias: Tensor, padding: Tensor, slopes: Tensor, sinks: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition, one query and one key at a time. Only the numbers matter, not their types."""
    (B, H, S, _), (K, T) = q.shape, k.shape[1:3]
    out = torch.zeros(B, H, S, v.shape[-1], dtype=torch.float64)
    lse = torch.zeros(B, H, S, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            g = h // (H // K)
            for i in range(S):
                total, row = math.exp(sinks[h]), torch.zeros(v.shape[-1], dtype=torch.float64)
                for j in range(T):
                    stands_at = i + T - S
                    if not stands_at - left <= j <= stands_at + right or padding[b, j]:
                        continue
                    score = softcap * math.tanh(scale * float(q[b, h, i] @ k[b, g, j]) / softcap)
                    score += float(bias[b, h, i, j] - slopes[h] * abs(stands_at - j))
                    total += math.exp(score)
                    row += math.exp(score) * v[b, g, j]
                out[b, h, i], lse[b, h, i] = row / total, math.log(total)
    return out, lse


@pytest.mark.parametrize(("S", "T"), [(5, 5), (3, 7), (6, 4)], ids=str)
def test_attention_is_its_definition(S: int, T: int) -> None:
    q, k, v = normal(2, 4, S, 6), normal(2, 2, T, 6), normal(2, 2, T, 3)
    bias, slopes, sinks = normal(2, 4, S, T), normal(4).abs(), normal(4)
    padding = torch.rand(2, T) < 0.3
    options = AttentionOptions(
        bias, padding, slopes, sinks, window_left=2, window_right=1, scale=0.4, softcap=1.5
    )
    ours = reference.attention(q, k, v, options)
    loops = attention_by_loops(
        q, k, v, scale=0.4, softcap=1.5, left=2, right=1, bias=bias, padding=padding,
        slopes=slopes, sinks=sinks,
    )  # fmt: skip
    for a, b in zip(ours, loops, strict=True):
        torch.testing.assert_close(a, b)


# The window that each option stands for, in the words of its definition: query i at position p
# sees the keys from p - left to p + right.
WINDOWS = {
    "nothing": ({}, (99, 99)),
    "causal": ({"causal": True}, (99, 0)),
    "width": ({"window": 3}, (2, 2)),
    "causal width": ({"causal": True, "window": 3}, (2, 0)),
    "pair": ({"window": (1, 4)}, (1, 4)),
    "causal pair": ({"causal": True, "window": (1, 4)}, (1, 0)),
    "unlimited left": ({"window": (-1, 2)}, (99, 2)),
    "unlimited right": ({"window": (2, -1)}, (2, 99)),
}


@pytest.mark.parametrize(("options", "sides"), WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize(("S", "T"), [(5, 5), (3, 7), (6, 4)], ids=str)
def test_windows_are_their_definitions(
    S: int, T: int, options: dict[str, Any], sides: tuple[int, int]
) -> None:
    """Keys that weigh the same: every visible one has the weight 1 / (number of visible ones)."""
    q, k, v = normal(1, 1, S, 2), torch.zeros(1, 1, T, 2).double(), torch.eye(T).double()
    weights = served_by("reference", "attention")(q, k, v[None, None], **options)[0, 0]
    for i in range(S):
        p = i + T - S
        visible = torch.tensor([p - sides[0] <= j <= p + sides[1] for j in range(T)]).double()
        torch.testing.assert_close(weights[i], visible / max(visible.sum().item(), 1))


def test_no_default_of_the_options_changes_anything() -> None:
    q, k, v = normal(2, 4, 5, 6), normal(2, 4, 7, 6), normal(2, 4, 7, 3)
    scores = q @ k.transpose(-1, -2)
    out, lse = reference.attention(q, k, v, AttentionOptions())
    torch.testing.assert_close(out, scores.softmax(-1) @ v)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "scale": {"scale": 0.3},
    "window": {"causal": True, "window": 3},
    "two-sided window": {"window": 3},
    "window pair": {"window": (1, 4)},
    "float bias": {"bias": normal(2, 4, 6, 9)},
    "bool bias": {"bias": normal(6, 9) > -1},
    "padding": {"key_padding_mask": normal(2, 9) > 1},
    "alibi": {"alibi_slopes": normal(4).abs()},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_attention_equals_torch(options: dict[str, object]) -> None:
    q, k, v = normal(2, 4, 6, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 5)
    assert_reference_equals_torch(q, k, v, **options)


def assert_reference_equals_torch(*tensors: Tensor, **options: object) -> None:
    ours, torchs = (
        served_by(backend, "attention")(*tensors, **options) for backend in ("reference", "torch")
    )
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("causal", (False, True))
def test_packed_attention_equals_torch(causal: bool) -> None:
    q, k, v = normal(9, 4, 8), normal(11, 2, 8), normal(11, 2, 5)
    options = {
        "cu_seqlens_q": torch.tensor([0, 4, 4, 9]),
        "cu_seqlens_k": torch.tensor([0, 5, 6, 11]),
        "causal": causal,
        "alibi_slopes": normal(3, 4).abs(),
    }
    assert_reference_equals_torch(q, k, v, **options)


@pytest.mark.parametrize("probabilities", (False, True), ids=["indices", "probabilities"])
@pytest.mark.parametrize("smoothing", (0.0, 0.2))
@pytest.mark.parametrize("weighted", (False, True), ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("shape", ((11,), (6, 11), (6, 11, 3), (0, 11)), ids=str)
def test_cross_entropy_equals_torch(
    shape: tuple[int, ...], reduction: str, weighted: bool, smoothing: float, probabilities: bool
) -> None:
    logits = normal(*shape).requires_grad_()
    if probabilities:
        target = torch.rand(shape, dtype=torch.float64)
    else:
        target = torch.randint(0, 11, shape[:1] + shape[2:] if len(shape) > 1 else ())
        if target.numel() > 2:
            target.view(-1)[1] = -100
    weight = torch.rand(11, dtype=torch.float64) if weighted else None
    options = CrossEntropyOptions(weight, -100, REDUCTIONS.index(reduction), smoothing)
    results = []
    for loss in (
        reference.cross_entropy(logits, target, options),
        F.cross_entropy(logits, target, weight, reduction=reduction, label_smoothing=smoothing),
    ):
        results.append((loss, torch.autograd.grad(loss.sum(), logits)[0]))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_cross_entropy_softcap_and_z_loss_are_their_definitions() -> None:
    logits, target = normal(6, 11), torch.randint(0, 11, (6,))
    capped = 2 * torch.tanh(logits / 2)
    expected = F.cross_entropy(capped, target) + 0.1 * (capped.logsumexp(1) ** 2).mean()
    ours = reference.cross_entropy(logits, target, CrossEntropyOptions(softcap=2.0, z_loss=0.1))
    torch.testing.assert_close(ours, expected)


def test_cross_entropy_means_differ_for_weights_and_z_loss() -> None:
    logits, target = normal(6, 11), torch.tensor([0, 1, -100, 3, 4, -100])
    weight = torch.rand(11, dtype=torch.float64)
    z_loss = (0.1 * logits.logsumexp(1) ** 2)[target >= 0].mean()
    ours = reference.cross_entropy(logits, target, CrossEntropyOptions(weight, z_loss=0.1))
    torch.testing.assert_close(ours, F.cross_entropy(logits, target, weight) + z_loss)


def test_linear_cross_entropy_equals_torch() -> None:
    x, w, b = normal(2, 5, 8), normal(11, 8), normal(11)
    target = torch.randint(0, 11, (2, 5))
    expected = F.cross_entropy(F.linear(x, w, b).flatten(0, 1), target.flatten())
    ours = reference.linear_cross_entropy(x, w, target, b, CrossEntropyOptions())
    torch.testing.assert_close(ours, expected)


def test_rms_norm_equals_torch() -> None:
    x, w = normal(3, 8), normal(8)
    torch.testing.assert_close(
        reference.rms_norm(x, w, None, 1e-3, 0.0)[0], F.rms_norm(x, (8,), w, 1e-3)
    )


@pytest.mark.parametrize("interleaved", (False, True))
def test_rope_is_a_complex_rotation(interleaved: bool) -> None:
    """Each pair, as a complex number, times e^(i angle)."""
    q, k, angle = normal(2, 4, 5, 8), normal(2, 2, 5, 8), normal(5, 4)
    ours = reference.rope(q, k, angle.cos(), angle.sin(), interleaved=interleaved)
    for x, turned in zip((q, k), ours, strict=True):
        a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        z = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
        pairs = (z.real, z.imag)
        expected = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
        torch.testing.assert_close(turned, expected)


def test_swiglu_is_its_definition() -> None:
    gate, up = normal(3, 8), normal(3, 8)
    torch.testing.assert_close(reference.swiglu(gate, up), gate / (1 + (-gate).exp()) * up)


def test_16_bit_input_is_computed_in_float32_and_rounded_once() -> None:
    gate, up = normal(3, 8).bfloat16(), normal(3, 8).bfloat16()
    expected = reference.swiglu(gate.float(), up.float()).bfloat16()
    assert torch.equal(reference.swiglu(gate, up), expected)
