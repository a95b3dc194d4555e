from __future__ import annotations

import dataclasses

import pytest
import torch

from llama_fast.models import LLaMA, Llama3RopeScaling, LlamaConfig, preset_names

# Counts that the model cards and safetensors of the published models state.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "stories260k": 260_032,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert LlamaConfig.preset(name).num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", preset_names())
def test_model_has_the_parameters_that_its_config_counts(name: str) -> None:
    config = LlamaConfig.preset(name)
    with torch.device("meta"):
        model = LLaMA(config)
    assert sum(weight.numel() for weight in model.parameters()) == config.num_parameters()


def test_every_preset_but_debug_is_published() -> None:
    assert set(preset_names()) - set(PUBLISHED) == {"debug"}


def test_preset_takes_changes() -> None:
    config = LlamaConfig.preset("Llama2-7B", p_dropout=0.1)
    assert config == dataclasses.replace(LlamaConfig.preset("llama2-7b"), p_dropout=0.1)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("llama-2-7b", "llama2-7b"), ("smollm-135m", "smollm2-135m"), ("tinyllama", "tinyllama-1.1b")],
)
def test_unknown_preset_offers_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"no preset '{typed}'; did you mean .*{meant}"):
        LlamaConfig.preset(typed)


def test_preset_unlike_any_lists_all() -> None:
    with pytest.raises(ValueError, match=r"llama2-7b or llama2-13b .* debug"):
        LlamaConfig.preset("???")


def test_defaults_are_llama_2s() -> None:
    config = LlamaConfig(32000, 4096, 32, 32)
    assert (config.num_kv_heads, config.head_dim, config.ffn_dim) == (32, 128, 11008)
    assert LlamaConfig(32000, 5120, 40, 40).ffn_dim == 13824


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: expected a positive int, got 0"),
        ({"num_layers": 2.0}, "num_layers: expected a positive int, got 2.0"),
        ({"embed_dim": 66}, "embed_dim: expected a multiple of num_heads = 4"),
        ({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads = 4, got 3"),
        ({"head_dim": 7}, "head_dim: expected an even number, for RoPE's pairs, got 7"),
        ({"p_dropout": 1.5}, "p_dropout: expected 0 <= p <= 1, got 1.5"),
        ({"rope_theta": 0.0}, "rope_theta: expected a positive number, got 0.0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: expected a number >= 0, got -1.0"),
        ({"rope_factors": (1.0, 2.0)}, "rope_factors: expected head_dim / 2 = 8 positive numbers"),
        (
            {"rope_factors": (1.0,) * 8, "rope_scaling": Llama3RopeScaling()},
            "rope_factors: expected None beside rope_scaling",
        ),
    ],
)
def test_errors_name_the_field(fields: dict[str, object], message: str) -> None:
    sizes = {"vocab_size": 256, "embed_dim": 64, "num_heads": 4, "num_layers": 2}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        LlamaConfig(**{**sizes, **fields})  # type: ignore[arg-type]


def test_rope_scaling_checks_its_numbers() -> None:
    with pytest.raises(ValueError, match=r"expected 0 < low < high, got 4.0 and 4.0"):
        Llama3RopeScaling(low_freq_factor=4.0)
    with pytest.raises(ValueError, match=r"expected positive numbers, got 0.0 and 8192"):
        Llama3RopeScaling(factor=0.0)
