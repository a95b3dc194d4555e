"""What tests of evaluation share."""

from __future__ import annotations

import pytest
import torch

from llama_fast.models import LLaMA


@pytest.fixture(scope="session")
def small_model() -> LLaMA:
    """A model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = LLaMA(vocab_size=128, embed_dim=32, num_heads=4, num_layers=2, num_kv_heads=2)
    with torch.no_grad():  # far from uniform, so that a wrong position shows
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()
