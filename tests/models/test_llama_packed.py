"""Sequences packed into one row are the sequences by themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from llama_fast import use_backend
from llama_fast.models import KVCache, LLaMA, LlamaConfig

LENGTHS = [5, 1, 40, 18]


@pytest.fixture
def model() -> LLaMA:
    torch.manual_seed(0)
    return LLaMA(LlamaConfig.preset("debug"))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(256, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))


def offsets(dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=dtype)


def apart(model: LLaMA, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (1,N,V) of each sequence alone, and the gradients of the sum of their squares."""
    model.zero_grad()
    logits = torch.cat([model(part) for part in tokens.split(LENGTHS, dim=1)], dim=1)
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def packed(model: LLaMA, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(tokens, cu_seqlens=offsets())
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_further_from_float64_than_one_by_one(
    model: LLaMA, tokens: Tensor, dtype: torch.dtype
) -> None:
    """The reference computes in float64; rounding differs, and may not be worse."""
    narrow = copy.deepcopy(model).to(dtype)
    with use_backend("reference"):
        truth, true_gradients = apart(copy.deepcopy(narrow).double(), tokens)
    ours, our_gradients = packed(narrow, tokens)
    theirs, their_gradients = apart(narrow, tokens)

    def error(found: Tensor, true: Tensor) -> float:
        return float((found.double() - true).norm() / true.norm())

    assert error(ours, truth) <= 1.2 * error(theirs, truth) + torch.finfo(dtype).eps
    for name, true in true_gradients.items():
        bound = 1.2 * error(their_gradients[name], true) + torch.finfo(dtype).eps
        assert error(our_gradients[name], true) <= bound, name


def test_other_sequences_change_not_one_bit(model: LLaMA, tokens: Tensor) -> None:
    other = tokens.clone()
    other[:, : LENGTHS[0]] = (other[:, : LENGTHS[0]] + 1) % 256
    with torch.no_grad():
        one, two = (model(t, cu_seqlens=offsets())[:, LENGTHS[0] :] for t in (tokens, other))
    assert torch.equal(one, two)


def test_the_loss_of_a_pack_is_that_of_its_sequences(model: LLaMA, tokens: Tensor) -> None:
    model = model.double()
    targets = tokens.roll(-1, 1)
    targets[0, ::7] = -100
    parts = zip(tokens.split(LENGTHS, 1), targets.split(LENGTHS, 1), strict=True)
    total = sum(model.loss(a, b, reduction="sum").item() for a, b in parts)
    found = model.loss(tokens, targets, cu_seqlens=offsets(torch.int64), reduction="sum").item()
    assert found == pytest.approx(total, rel=1e-12)


def test_a_pack_may_be_longer_than_the_longest_sequence(model: LLaMA) -> None:
    N = 3 * model.config.max_seq_len
    tokens = torch.zeros(1, N, dtype=torch.int64)
    assert model(tokens, cu_seqlens=torch.arange(0, N + 1, N // 3)).shape == (1, N, 256)
    with pytest.raises(ValueError, match="cu_seqlens: expected sequences of at most max_seq_len"):
        model(tokens, cu_seqlens=torch.tensor([0, N]))


def test_refusals(model: LLaMA, tokens: Tensor) -> None:
    cu = offsets()
    N = tokens.shape[1]
    with pytest.raises(ValueError, match="cu_seqlens: expected no mask and no cache"):
        model(tokens, cu_seqlens=cu, src_mask=torch.zeros(N, N, dtype=torch.bool))
    with pytest.raises(ValueError, match="cu_seqlens: expected no mask and no cache"):
        model(tokens, cu_seqlens=cu, cache=KVCache(model.config, 1, 64))
    with pytest.raises(ValueError, match=r"tokens: expected shape \(1,S\) beside cu_seqlens"):
        model(tokens.reshape(2, -1), cu_seqlens=cu)
    with pytest.raises(ValueError, match="cu_seqlens: expected a vector of int32 or int64"):
        model(tokens, cu_seqlens=cu.float())
    with pytest.raises(ValueError, match="cu_seqlens"):
        model(tokens, cu_seqlens=cu[:-1])
