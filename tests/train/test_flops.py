"""FLOPs of a step, against torch's count in another implementation of the model."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llama_fast.models import LlamaConfig
from llama_fast.train.flops import attention_pairs, measured_flops, peak_flops, training_flops


@pytest.mark.parametrize("tied", [False, True])
def test_equals_torchs_count_in_transformers(tied: bool) -> None:
    """Without Flash attention, which multiplies what the mask hides too: all pairs count."""
    from transformers import LlamaConfig as Theirs
    from transformers import LlamaForCausalLM

    ours = LlamaConfig(320, 64, 4, 3, num_kv_heads=2, head_dim=24, ffn_dim=160, tie_embeddings=tied)
    theirs = Theirs(
        vocab_size=320,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        num_hidden_layers=3,
        intermediate_size=160,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(theirs)
    tokens = torch.randint(320, (2, 48))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    assert training_flops(ours, 96, 96, 2 * 48 * 48) == counter.get_total_flops()


def test_pairs_are_those_that_the_packed_mask_allows() -> None:
    lengths = torch.tensor([5, 1, 9, 17])
    mask = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths.tolist()))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
    assert attention_pairs(offsets) == int(mask.sum())
    # Lengths whose square is above 2^31.
    assert attention_pairs(torch.tensor([0, 100_000], dtype=torch.int32)) == 5_000_050_000


def test_ignored_targets_take_no_flops_in_the_head() -> None:
    config = LlamaConfig.preset("debug")
    all_, none = (training_flops(config, 100, targets, 0) for targets in (100, 0))
    assert all_ - none == 6 * 100 * config.vocab_size * config.embed_dim


def test_peak_of_the_processor_is_measured_quickly() -> None:
    cpu = torch.device("cpu")
    state = torch.get_rng_state()
    begin = time.perf_counter()
    slow = measured_flops(cpu, "float32", seconds=0.05)
    assert time.perf_counter() - begin < 5
    assert 1e8 < slow < 1e15
    assert torch.equal(torch.get_rng_state(), state)
    peak = peak_flops(cpu, "float32")
    assert "measured" in peak.source and peak is peak_flops(cpu, "float32")


@pytest.mark.parametrize(
    ("name", "precision", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA H100 PCIe", "float16", 756e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H200", "float32", 67e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA B200", "bfloat16", 2250e12),
    ],
)
def test_gpus_are_recognized_by_their_names(
    name: str, precision: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak_flops.cache_clear()
    try:
        assert peak_flops(torch.device("cuda"), precision).flops == rate
    finally:
        peak_flops.cache_clear()
