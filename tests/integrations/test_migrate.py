"""docs/migrate.md: its names exist and its claims about numbers hold; tests/docs runs its code."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

import llama_fast
from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "migrate.md").read_text()
CALLS = sorted(set(re.findall(r"llama_fast\.(\w+)\(", PAGE)))


@pytest.mark.parametrize("name", CALLS)
def test_functions_exist(name: str) -> None:
    assert callable(getattr(llama_fast, name))


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


I, J = torch.arange(9).unsqueeze(1), torch.arange(9)
SLOPE = torch.tensor([0.5, 0.1])
LENGTH = torch.tensor([9, 4])
DOCUMENT = torch.tensor([0] * 4 + [1] * 5)


@pytest.mark.parametrize(
    "mask, options",
    [
        (I >= J, {"causal": True}),
        ((I - J >= 0) & (I - J <= 3), {"causal": True, "window": (3, 0)}),
        ((I - J).abs() <= 3, {"window": (3, 3)}),
        (LENGTH.view(2, 1, 1, 1) > J, {"key_padding_mask": LENGTH.view(2, 1) <= J}),
        (I % 3 != J, {"bias": I % 3 != J}),
    ],
)
def test_masks_of_flex_attention(mask, options):
    q, k, v = rows(2, 2, 9, 8), rows(2, 2, 9, 8).flip(0), rows(2, 2, 9, 8).flip(2)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(llama_fast.attention(q, k, v, **options), expected)


def test_documents_of_flex_attention():
    q = rows(2, 9, 8)
    mask = DOCUMENT.unsqueeze(1) == DOCUMENT
    expected = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    packed = q.transpose(0, 1)
    out = llama_fast.attention(packed, packed, packed, cu_seqlens_q=torch.tensor([0, 4, 9]))
    torch.testing.assert_close(out.transpose(0, 1), expected)


@pytest.mark.parametrize(
    "change, options",
    [
        (lambda s: 2 * torch.tanh(s / 2), {"softcap": 2.0}),
        (lambda s: s - SLOPE.view(2, 1, 1) * (I - J).abs(), {"alibi_slopes": SLOPE}),
        (lambda s: s + I * 0.1, {"bias": I * 0.1}),
    ],
)
def test_scores_of_flex_attention(change, options):
    q, k, v = rows(2, 2, 9, 8), rows(2, 2, 9, 8).flip(0), rows(2, 2, 9, 8).flip(2)
    expected = change(scores(q, k)).softmax(-1) @ v
    torch.testing.assert_close(llama_fast.attention(q, k, v, **options), expected)


def test_shifts_of_cut_cross_entropy():
    e, c, b = rows(2, 7, 8), rows(11, 8).flip(0), rows(11)
    targets = torch.arange(14).view(2, 7) % 11
    for n in (1, 2):
        logits = (e @ c.T + b)[:, :-n]
        expected = F.cross_entropy(logits.flatten(0, 1), targets[:, n:].flatten())
        made = llama_fast.linear_cross_entropy(
            e[..., :-n, :], c, targets[..., n:], linear_bias=b
        )  # fmt: skip
        torch.testing.assert_close(made, expected)
        if n == 1:
            shifted = llama_fast.linear_cross_entropy(e, c, targets, linear_bias=b, shift=True)
            torch.testing.assert_close(shifted, expected)
    each = llama_fast.linear_cross_entropy(e, c, targets, shift=True, reduction="none")
    assert each.shape == (2, 6)


def test_z_loss_is_lse_square_scale():
    logits, labels = rows(5, 7), torch.arange(5)
    expected = F.cross_entropy(logits, labels) + 0.1 * logits.logsumexp(1).square().mean()
    torch.testing.assert_close(llama_fast.cross_entropy(logits, labels, z_loss=0.1), expected)


def test_tables_of_liger():
    q, k = rows(2, 4, 5, 8), rows(2, 2, 5, 8)
    half = torch.outer(torch.arange(5.0), torch.arange(4.0))
    cos, sin = (torch.cat([t, t], -1)[None] for t in (half.cos(), half.sin()))

    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos.unsqueeze(1) + torch.cat([-b, a], -1) * sin.unsqueeze(1)

    D, expected = 8, (turn(q), turn(k))
    one = llama_fast.rope(q, k, cos[0, :, : D // 2], sin[0, :, : D // 2])
    torch.testing.assert_close(one, expected)
    cos, sin = (t.expand(2, -1, -1) for t in (cos, sin))
    each = llama_fast.rope(q, k, cos[..., : D // 2], sin[..., : D // 2])
    torch.testing.assert_close(each, expected)
