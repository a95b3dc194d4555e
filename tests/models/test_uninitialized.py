"""Models for weights that are read from a file: no random numbers are drawn for them."""

from __future__ import annotations

import pytest
import torch

from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.models.uninitialized import uninitialized

CONFIG = LlamaConfig(vocab_size=64, embed_dim=32, num_heads=2, num_layers=2)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_shapes_and_dtypes_are_those_of_a_new_model(device: str) -> None:
    expected, model = LLaMA(CONFIG), uninitialized(CONFIG, device)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        ours = model.state_dict()[name]
        assert (ours.shape, ours.dtype, ours.device.type) == (weight.shape, weight.dtype, device)
    assert all(weight.requires_grad for weight in model.parameters())


def test_no_random_numbers_are_drawn() -> None:
    before = torch.get_rng_state()
    uninitialized(CONFIG)
    assert torch.equal(before, torch.get_rng_state())
    LLaMA(CONFIG)  # outside, a model is initialised as ever
    assert not torch.equal(before, torch.get_rng_state())


def test_filled_it_computes_the_same() -> None:
    model, filled = LLaMA(CONFIG), uninitialized(CONFIG)
    filled.load_state_dict(model.state_dict())
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens), filled(tokens))
