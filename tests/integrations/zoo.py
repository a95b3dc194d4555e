"""Tiny random models of the architectures that people use, as data.

One architecture is a line or two: what of transformers' default configuration is changed, and what
about it is worth a test. All else (widths, dropout of 0, a window shorter than the inputs) is the
same for all and set where a configuration has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

Inputs = dict[str, torch.Tensor]

BATCH, LENGTH, VOCABULARY = 3, 32, 211
# Names that differ (n_embd, n_layer) are known to transformers' configurations themselves.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image": "AutoModelForImageClassification",
    "speech": "AutoModelForSpeechSeq2Seq",
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: transformers' `model_type`.
        note: what it has that others have not.
        kind: what it computes, a key of AUTO.
        config: what differs from SIZES; None leaves a size at transformers' default.
        all_experts: what has every expert chosen. In bfloat16 the choice is a draw of chance near
            a tie, and one other choice is a greater difference than all rounding.
        stock: attention implementation to compare with; None for transformers' choice.
    """

    name: str
    note: str
    kind: str = "causal"
    config: dict[str, Any] = field(default_factory=dict)
    all_experts: dict[str, Any] = field(default_factory=dict)
    stock: str | None = None


# fmt: off
def _architectures() -> Iterator[Architecture]:
    A = Architecture
    yield A("llama", "RMSNorm, rotary positions, grouped keys, gated MLP with SiLU")
    yield A("mistral", "a sliding window in all layers")
    yield A("ministral", "windows in some layers only",
            config={"layer_types": ["sliding_attention", "full_attention"]})
    yield A("ministral3", "queries scaled by their position")
    yield A("mixtral", "experts", config={"num_local_experts": 4},
            all_experts={"num_experts_per_tok": 4})
    yield A("qwen2", "biases of queries, keys and values", config={"sliding_window": None})
    yield A("qwen2_moe", "a shared expert with a gate of its own",
            config={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                    "shared_expert_intermediate_size": 48},
            all_experts={"num_experts_per_tok": 4})
    yield A("qwen3", "RMSNorm of queries and keys per head")
    yield A("qwen3_moe", "the same with experts",
            config={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
            all_experts={"num_experts_per_tok": 4})
    yield A("gemma", "RMSNorm with 1 + weight, GELU, scaled embeddings, tied head")
    yield A("gemma2", "softcaps in attention and of the logits, windows in every other layer",
            # In older transformers "sdpa" leaves the softcap of attention out.
            config={"query_pre_attn_scalar": 16}, stock="eager")
    yield A("gemma3_text", "norms of queries and keys, two tables of angles",
            config={"query_pre_attn_scalar": 16,
                    "layer_types": ["sliding_attention", "full_attention"]})
    yield A("phi", "part of each head turned, LayerNorm, attention beside MLP, a head with bias",
            config={"num_key_value_heads": 4})
    yield A("phi3", "queries, keys and values in one matrix, gate and up in one")
    yield A("olmo", "LayerNorm without weights", config={"clip_qkv": 2.0})
    yield A("olmo2", "norms after attention and MLP, of queries and keys before heads are split")
    yield A("olmo3", "the same with windows",
            config={"layer_types": ["sliding_attention", "full_attention"]})
    yield A("granite", "factors of embeddings, residuals, attention and logits",
            config={"embedding_multiplier": 1.5, "residual_multiplier": 0.7,
                    "attention_multiplier": 0.2, "logits_scaling": 2.0})
    yield A("cohere", "LayerNorm without bias, interleaved rotation, scaled logits",
            config={"use_qk_norm": True})
    yield A("cohere2", "positions in layers with a window only")
    yield A("stablelm", "LayerNorm, part of each head turned", config={"use_qkv_bias": True})
    yield A("starcoder2", "LayerNorm, biases, no gate")
    yield A("smollm3", "layers without positions", config={"no_rope_layers": [1, 0]})
    yield A("glm4", "part of each head turned in pairs, norms before and after",
            config={"attention_bias": True})
    yield A("nemotron", "LayerNorm with 1 + weight, squared ReLU")
    yield A("exaone4", "norms after attention and MLP, positions in layers with a window only",
            config={"layer_types": ["sliding_attention", "full_attention"]})
    yield A("helium", "interleaved rotation of a llama", config={})
    yield A("ernie4_5", "interleaved rotation in float32, biases", config={"use_bias": True})
    yield A("seed_oss", "biases of queries, keys and values but not of the output")
    yield A("arcee", "squared ReLU in a llama")
    yield A("apertus", "xIELU, norms of queries and keys")
    yield A("gpt2", "learned positions, Conv1D, LayerNorm, tied head")
    yield A("gpt_neo", "attention of its own, windows in every other layer",
            config={"num_layers": 2, "window_size": 12,
                    "attention_types": [[["global", "local"], 1]]})
    yield A("gpt_neox", "queries, keys and values in one matrix, attention beside MLP")
    yield A("gptj", "attention of its own, rotation of part of each head", config={"rotary_dim": 8})
    yield A("gpt_bigcode", "one head of keys and values")
    yield A("opt", "learned positions shifted by two, ReLU",
            config={"ffn_dim": 96, "word_embed_proj_dim": 64})
    yield A("falcon", "one head of keys and values, attention of its own",
            config={"head_dim": None})
    yield A("bloom", "ALiBi, attention of its own")
    yield A("mpt", "ALiBi, attention of its own, LayerNorm without bias")
    yield A("gpt_oss", "sinks, windows in every other layer, experts with a clamped gate",
            config={"num_local_experts": 4, "num_experts_per_tok": 2,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            all_experts={"num_experts_per_tok": 4})
    yield A("deepseek_v3", "latent attention, values narrower than keys, groups of experts",
            config={"num_key_value_heads": 4, "head_dim": None, "q_lora_rank": 24,
                    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
                    "v_head_dim": 16, "first_k_dense_replace": 1, "n_routed_experts": 8,
                    "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
                    "moe_intermediate_size": 32},
            all_experts={"topk_group": 2, "num_experts_per_tok": 8})
    yield A("llama4_text", "attention in chunks, rotation of complex numbers, experts",
            config={"num_local_experts": 4, "intermediate_size_mlp": 96,
                    "attention_chunk_size": 12, "no_rope_layers": [1, 0]},
            all_experts={"num_experts_per_tok": 4})
    yield A("bert", "sees both sides, learned positions", "masked")
    yield A("roberta", "positions that skip the padding", "masked")
    yield A("distilbert", "a smaller bert with names of its own", "masked",
            config={"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4})
    yield A("electra", "embeddings narrower than the layers", "masked",
            config={"embedding_size": 32})
    yield A("modernbert", "windows to both sides, gated GELU, rotary positions", "masked",
            config={"local_attention": 12, "global_attn_every_n_layers": 2, "cls_token_id": 1,
                    "sep_token_id": 2})
    yield A("t5", "positions as a learned bias, unscaled products, RMSNorm", "seq2seq",
            config={"d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2,
                    "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
                    "relative_attention_max_distance": 20})
    yield A("bart", "encoder and decoder, attention across", "seq2seq",
            config={"d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
                    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "decoder_start_token_id": 2,
                    "forced_eos_token_id": None})
    yield A("vit", "images in patches", "image", config={"image_size": 24, "patch_size": 4})
    yield A("dinov2", "images, scaled residuals", "image",
            config={"image_size": 28, "patch_size": 7, "mlp_ratio": 2})
    yield A("whisper", "speech, convolutions before the encoder, keys without bias", "speech",
            config={"d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
                    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "decoder_start_token_id": 1,
                    "num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 64,
                    "suppress_tokens": None, "begin_suppress_tokens": None})
# fmt: on


ZOO = {a.name: a for a in _architectures()}


class Unknown(Exception):
    """This version of transformers does not know an architecture."""


def config_of(name: str, **more: Any) -> Any:
    """The configuration of an architecture; raises :class:`Unknown`."""
    try:
        default = transformers.AutoConfig.for_model(name)
    except ValueError as error:
        raise Unknown(f"transformers {transformers.__version__} has no {name}") from error
    known = {
        key: value
        for key, value in SIZES.items()
        if hasattr(default, key) or key.endswith("_token_id")
    }
    silent = {
        key: 0.0
        for key, value in default.to_dict().items()
        if "drop" in key and isinstance(value, float)
    }
    given = {**silent, **known, **ZOO[name].config, **more}
    given = {key: value for key, value in given.items() if value is not None}
    return transformers.AutoConfig.for_model(name, **given)


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Any:
    """A model in training mode, every parameter random; raises :class:`Unknown`."""
    auto = getattr(transformers, AUTO[ZOO[name].kind])
    model = auto.from_config(config_of(name, **config), dtype=dtype).train()
    if ZOO[name].stock:
        model.set_attn_implementation(ZOO[name].stock)
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Numbers that leave nothing at its neutral value: biases, norms, sinks, positions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            else:
                parameter.add_(0.2 * noise)


def batches(name: str, model: Any) -> dict[str, Inputs]:
    """What to compute of a model: inputs by what they are."""
    kind = ZOO[name].kind
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int = LENGTH) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, (BATCH, length), generator=generator)

    if kind == "image":
        size = model.config.image_size
        pixels = torch.randn(BATCH, model.config.num_channels, size, size, generator=generator)
        return {"plain": {"pixel_values": pixels, "labels": torch.tensor([0, 1, 0])}}
    if kind == "speech":
        shape = BATCH, model.config.num_mel_bins, 2 * model.config.max_source_positions
        features = torch.randn(*shape, generator=generator)
        return {"plain": {"input_features": features, "labels": tokens(16)}}
    ids = tokens()
    if kind == "seq2seq":
        labels = tokens(24)
        labels[0, :3] = -100
        plain = {"input_ids": ids, "labels": labels}
        kept = torch.ones_like(ids)
        kept[1, 20:] = 0
        return {"plain": plain, "right-padded": {**plain, "attention_mask": kept}}
    labels = ids.clone()
    labels[:, :4] = -100
    plain = {"input_ids": ids, "labels": labels}
    found = {"plain": plain}
    for side in ("left", "right"):
        kept = torch.ones_like(ids)
        if side == "left":
            kept[0, :7], kept[1, :15] = 0, 0
        else:
            kept[1, 22:], kept[2, 9:] = 0, 0
        # No loss is made of padding. The first token after it is predicted at a padded place.
        seen = (kept == 1) & (kept.roll(1, 1) == 1)
        found[f"{side}-padded"] = {
            "input_ids": ids.masked_fill(kept == 0, 0),
            "attention_mask": kept,
            "labels": labels.masked_fill(~seen, -100),
        }
    if kind == "causal":
        places = torch.cat([torch.arange(14), torch.arange(LENGTH - 14)])
        other = torch.cat([torch.arange(5), torch.arange(LENGTH - 11), torch.arange(6)])
        found["packed"] = {**plain, "position_ids": torch.stack([places, other, places])}
    return found
