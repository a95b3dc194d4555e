"""Attention dropout: which weights are dropped is a function of the seed and the position alone."""

import math
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.reference.philox import philox4x32
from tests.ops.attention_cases import Case, runner
from tests.ops.criterion import DTYPES, check

OP = "attention"


def seeded(*args: Any, **options: Any) -> Any:
    """The op, drawing the same seed at every call."""
    torch.manual_seed(20)
    return llama_fast.attention(*args, **options)


def seeded_reference(*args: Any, **options: Any) -> Any:
    with llama_fast.use_backend(attention="reference"):
        return seeded(*args, **options)


def weights(B: int, H: int, S: int, T: int, **options: Any) -> torch.Tensor:
    """The attention weights (B,H,S,T) after dropout: uniform scores times the unit matrix."""
    q, k = torch.zeros(B, H, S, 8), torch.zeros(B, H, T, 8)
    return llama_fast.attention(q, k, torch.eye(T).expand(B, H, T, T), **options)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    """The known-answer vectors that the authors of Philox publish with Random123."""
    got = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(int(w) for w in got) == words


CASES = [
    Case("dropout", S=40, T=70, options={"dropout_p": 0.3}),
    Case("dropout, causal, grouped, many tiles", B=1, H=4, S=100, T=140,
         options={"dropout_p": 0.1, "causal": True}),
    Case("dropout and everything else", H=4, S=30, T=45, Dv=9, grad_lse=True,
         options={"dropout_p": 0.5, "window": (20, 3), "softcap": 3.0},
         tensors={"bias": "1HST", "alibi_slopes": "H", "sinks": "H",
                  "key_padding_mask": "bool:BT"}),
    Case("dropout, packed: positions count from each sequence's start",
         lengths=((5, 9), (33, 33), (0, 4), (2, 2)), options={"dropout_p": 0.4}),
    Case("dropout of nearly everything", S=40, T=70, options={"dropout_p": 0.95}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_same_as_the_reference_with_the_same_seed(
    case: Case, dtype: torch.dtype, kernel: str
) -> None:
    check(OP, seeded, runner(case), dtype, formula=seeded_reference)


def test_dropped_positions_are_exactly_those_of_the_reference(backend: str) -> None:
    torch.manual_seed(5)
    ours = weights(2, 3, 37, 70, dropout_p=0.5)
    torch.manual_seed(5)
    with llama_fast.use_backend(attention="reference"):
        reference = weights(2, 3, 37, 70, dropout_p=0.5)
    assert torch.equal(ours == 0, reference == 0)


@pytest.mark.parametrize("p", (0.1, 0.5, 0.9))
def test_rate_and_scale(p: float, backend: str) -> None:
    B, H, S, T = 2, 4, 60, 64
    kept = weights(B, H, S, T, dropout_p=p)
    n = kept.numel()
    share = (kept != 0).double().mean().item()
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)  # five standard deviations
    torch.testing.assert_close(
        kept[kept != 0], torch.full((), 1 / T / (1 - p)).expand(int(share * n + 0.5))
    )


def test_masks_of_heads_batches_rows_and_calls_are_unrelated(backend: str) -> None:
    """Two of them agree on as many positions as independent coins do."""
    torch.manual_seed(1)
    first, second = (weights(2, 2, 32, 128, dropout_p=0.5) != 0 for _ in range(2))
    pairs = {
        "heads": (first[:, 0], first[:, 1]),
        "batch entries": (first[0], first[1]),
        "rows": (first[:, :, 1:], first[:, :, :-1]),
        "neighbouring keys": (first[..., 1:], first[..., :-1]),
        "calls": (first, second),
    }
    for name, (a, b) in pairs.items():
        agreement = (a == b).double().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(a.numel()), name


def test_seed_repeats_and_generator_moves_on(backend: str) -> None:
    torch.manual_seed(3)
    first, second = (weights(1, 2, 20, 20, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(3)
    again = weights(1, 2, 20, 20, dropout_p=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_no_dropout_draws_nothing(backend: str) -> None:
    before = torch.get_rng_state()
    weights(1, 1, 4, 4, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_certain_dropout_gives_zeros(backend: str) -> None:
    q, k, v = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(3))
    out, lse = llama_fast.attention(q, k, v, dropout_p=1.0, return_lse=True)
    assert (out == 0).all()
    torch.testing.assert_close(lse, llama_fast.attention(q, k, v, return_lse=True)[1])
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all((g == 0).all() for g in grads)


def test_lse_does_not_see_dropout(backend: str) -> None:
    q, k, v = (torch.randn(2, 2, 17, 8) for _ in range(3))
    with_dropout = llama_fast.attention(q, k, v, dropout_p=0.5, return_lse=True)[1]
    assert torch.equal(with_dropout, llama_fast.attention(q, k, v, return_lse=True)[1])


def test_backward_drops_what_forward_dropped(backend: str) -> None:
    """Numerical derivatives of the seeded forward pass."""
    q, k, v = (torch.randn(1, 2, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *x: seeded(*x, dropout_p=0.4), (q, k, v))


def test_packed_sequences_drop_like_a_batch(backend: str) -> None:
    q, k, v = (torch.randn(3, 2, 20, 8) for _ in range(3))
    cu = torch.tensor([0, 20, 40, 60])
    batch = seeded(q, k, v, dropout_p=0.5)
    rows = [x.transpose(1, 2).reshape(60, 2, 8) for x in (q, k, v)]
    packed = seeded(*rows, cu_seqlens_q=cu, dropout_p=0.5)
    torch.testing.assert_close(packed.view(3, 20, 2, 8).transpose(1, 2), batch)
