"""Random models of several shapes, as transformers makes them, and how ours are held to them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from llama_fast.models import LLaMA, Llama3RopeScaling, LlamaConfig
from tests.models import oracle

# Each with its reason.
SHAPES = {
    "mha-untied": LlamaConfig(97, 48, 4, 2, ffn_dim=80, max_seq_len=64),  # Llama 2 7B in small
    "gqa-tied": LlamaConfig(  # Llama 3.2 1B: shared keys, one vocabulary matrix
        97, 48, 6, 2, num_kv_heads=2, ffn_dim=80, max_seq_len=64, tie_embeddings=True
    ),
    "mqa-wide-heads": LlamaConfig(  # one key-value head; H * D != E
        97, 40, 4, 2, num_kv_heads=1, head_dim=16, ffn_dim=56, max_seq_len=64
    ),
    "llama3-rope": LlamaConfig(  # wavelengths of all three kinds: kept, blended, stretched
        97,
        64,
        4,
        2,
        num_kv_heads=2,
        ffn_dim=96,
        max_seq_len=64,
        rope_theta=500.0,
        rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 32),
    ),
    "linear-rope": LlamaConfig(
        97, 32, 4, 1, ffn_dim=48, max_seq_len=64, rope_factors=(4.0,) * 4, rms_norm_eps=1e-6
    ),
}


def transformers_model(config: LlamaConfig, seed: int = 0) -> transformers.LlamaForCausalLM:
    """A float32 model with weights large enough for attention and SwiGLU to be far from linear."""
    rope: dict[str, object] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        rope.update(rope_type="llama3", **vars(config.rope_scaling))
    elif config.rope_factors is not None:
        rope.update(rope_type="linear", factor=config.rope_factors[0])
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        std = 0.3 if weight.dim() == 1 else 1.5 / weight.shape[1] ** 0.5
        mean = 1.0 if weight.dim() == 1 else 0.0
        weight.data.normal_(mean, std, generator=generator)
    return model.eval()


def save_transformers(config: LlamaConfig, folder: Path, **options: object) -> Path:
    """Save such a model as a Hugging Face folder."""
    transformers_model(config).save_pretrained(folder, **options)
    return folder


def check(name: str, result: Tensor, truth: Tensor, theirs: Tensor, scale: float = 1.0) -> None:
    """Our error is at most theirs (times `scale`) and one rounding step.

    So it is for the root-mean-square error. The largest of some thousand errors that a whole model
    has piled up is a matter of luck on either side: there the factor is two.
    """
    assert result.shape == truth.shape, f"{name}: {result.shape}, expected {truth.shape}"
    step = torch.finfo(result.dtype).eps
    for kind, factor in (("root-mean-square", 1), ("largest", 2)):
        error, their_error, size = (
            measure(kind, x) for x in (result.double() - truth, theirs.double() - truth, truth)
        )
        allowed = factor * scale * their_error + step * size
        assert error <= allowed, f"{name}: {kind} error {error:.3g}, allowed {allowed:.3g}"


def measure(kind: str, x: Tensor) -> float:
    """The largest or the root-mean-square magnitude."""
    return (x.abs().max() if kind == "largest" else x.square().mean().sqrt()).item()


@torch.no_grad()
def check_logits(model: LLaMA, config: LlamaConfig) -> None:
    """`model` has the weights of transformers_model(config)."""
    theirs = transformers_model(config)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(config.vocab_size, (2, 50), generator=generator)
    truth = oracle.logits(config, dict(theirs.named_parameters()), tokens)
    check("logits", model(tokens), truth, theirs(tokens).logits)
