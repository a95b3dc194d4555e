from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from llama_fast.eval import evaluate
from llama_fast.models import LLaMA, LlamaConfig


class Successor(nn.Module):
    """Ranks token + 1 first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * nn.functional.one_hot((tokens + 1) % 10, 10)


def test_counts_right_targets_over_all_batches() -> None:
    tokens = torch.arange(8).view(2, 4)
    half = tokens + 1
    half[0] = 0
    batches = [(tokens, tokens + 1), (tokens, half), (tokens[:1], tokens[:1])]
    assert evaluate(Successor(), batches) == (8 + 4 + 0) / 20


def test_ignored_targets_do_not_count() -> None:
    tokens = torch.arange(8).view(2, 4)
    targets = tokens + 1
    targets[0, 1:] = -100
    targets[1, 0] = 0
    assert evaluate(Successor(), [(tokens, targets)]) == 4 / 5
    assert evaluate(Successor(), [(tokens, targets)], ignore_index=0) == 4 / 7


def test_nothing_to_count() -> None:
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    assert math.isnan(evaluate(Successor(), [(tokens, torch.full_like(tokens, -100))]))
    assert math.isnan(evaluate(Successor(), []))


def test_the_model_is_evaluated_without_dropout_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug", p_dropout=0.9)).train()
    tokens = torch.randint(256, (4, 32))
    targets = model.eval()(tokens).argmax(-1)  # what it says without dropout
    model.train()
    assert evaluate(model, [(tokens, targets)]) == 1.0
    assert model.training


def test_wrong_shape_is_an_error_and_leaves_the_mode() -> None:
    model = Successor().train()
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"targets: expected .* \(2, 4\), got \(2, 3\)"):
        evaluate(model, [(tokens, tokens[:, :3])])
    assert model.training
