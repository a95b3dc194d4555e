"""GGUF files: SmolLM2, a real tiny one, ones written with the gguf package, and damaged ones."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llama_fast.generation import generate
from llama_fast.models import CheckpointError, LlamaConfig, load
from llama_fast.models.checkpoints.gguf import _ELEMENTS_AT_ONCE, _dequantized
from tests.models.oracle import frequencies
from tests.models.peers import SHAPES, check_logits, transformers_model
from tests.paths import gguf_tiny, smollm2

MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Kind = gguf.GGMLQuantizationType


def write(
    path: Path,
    config: LlamaConfig,
    kind: Kind = Kind.F32,
    architecture: str = "llama",
    skip: str = "",
    factors: bool = False,
    linear: tuple[gguf.RopeScalingType | None, float] | None = None,
    **extra: np.ndarray,
) -> Path:
    """A random model as GGUF; transformers_model(config) makes the same one."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.head_dim * config.num_heads != config.embed_dim:
        writer.add_key_length(config.head_dim)
    if linear is None and config.rope_factors is not None and not factors:
        linear = gguf.RopeScalingType.LINEAR, config.rope_factors[0]
    if linear is not None:
        if linear[0] is not None:
            writer.add_rope_scaling_type(linear[0])
        writer.add_rope_scaling_factor(linear[1])
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    if not config.tie_embeddings:
        names["output"] = "lm_head"
    for i in range(config.num_layers):
        names |= {f"blk.{i}.{m}": f"model.layers.{i}.{t}" for m, t in MODULES.items()}
    weights = transformers_model(config).state_dict()
    for name, theirs in names.items():
        weight = weights[f"{theirs}.weight"].numpy()
        if name.endswith(("attn_q", "attn_k")):  # llama.cpp's order of rows
            halves = weight.reshape(-1, 2, config.head_dim // 2, config.embed_dim)
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        stored = Kind.F32 if weight.ndim == 1 else kind
        if f"{name}.weight" != skip:
            writer.add_tensor(f"{name}.weight", gguf.quantize(weight, stored), raw_dtype=stored)
    if factors:
        writer.add_tensor("rope_freqs.weight", np.array(config.rope_factors, dtype=np.float32))
    for name, array in extra.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_smollm2_answers() -> None:
    model, tokenizer = load(smollm2())
    assert tokenizer is not None
    # Its rms_norm_eps is 1e-5 rounded to float32.
    config = dataclasses.replace(model.config, rms_norm_eps=1e-5)
    assert config == LlamaConfig.preset("smollm2-135m")
    assert model.config.rms_norm_eps == pytest.approx(1e-5, rel=2**-24)
    prompt = torch.tensor([tokenizer.encode("The capital of France is")])
    answer = generate(model, prompt, 2)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer.tolist()) == " Paris."


def test_tiny_file() -> None:
    model, tokenizer = load(gguf_tiny())
    assert model.config.num_parameters() == sum(w.numel() for w in model.parameters())
    assert (model.config.embed_dim, model.config.head_dim, model.config.ffn_dim) == (8, 4, 32)
    assert {weight.dtype for weight in model.parameters()} == {torch.float16}
    assert tokenizer is not None
    assert tokenizer.vocab_size == model.config.vocab_size == 32000


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "llama3-rope"])
def test_logits_are_transformers(tmp_path: Path, shape: str) -> None:
    config = SHAPES[shape]
    model, tokenizer = load(write(tmp_path / "model.gguf", config))
    assert tokenizer is None
    check_logits(model, config)
    expected = dataclasses.replace(config, rms_norm_eps=float(np.float32(config.rms_norm_eps)))
    assert model.config == expected


def test_rope_factors_of_llama_3_1(tmp_path: Path) -> None:
    """llama.cpp's converter stores Llama 3's scaling as one divisor for each frequency."""
    scaled = SHAPES["llama3-rope"]
    plain = dataclasses.replace(scaled, rope_scaling=None)
    factors = (frequencies(plain) / frequencies(scaled)).tolist()
    assert factors[0] == 1  # all three kinds of wavelengths
    assert 1 < factors[1] < 8
    assert factors[-1] == pytest.approx(8)
    config = dataclasses.replace(plain, rope_factors=tuple(factors))
    model, _ = load(write(tmp_path / "model.gguf", config, factors=True))
    check_logits(model, scaled)


def test_rope_factors_and_linear_scaling_multiply(tmp_path: Path) -> None:
    """As in llama.cpp: a position is divided by both; a factor without a type means linear."""
    config = SHAPES["linear-rope"]
    half = dataclasses.replace(config, rope_factors=(2.0,) * 4)
    for kind in (gguf.RopeScalingType.LINEAR, None):
        path = write(tmp_path / f"{kind}.gguf", half, factors=True, linear=(kind, 2.0))
        check_logits(load(path)[0], config)
    path = write(
        tmp_path / "none.gguf", config, factors=True, linear=(gguf.RopeScalingType.NONE, 2.0)
    )
    check_logits(load(path)[0], config)
    path = write(tmp_path / "yarn.gguf", config, linear=(gguf.RopeScalingType.YARN, 2.0))
    with pytest.raises(CheckpointError, match="RoPE scaling 'yarn': expected none or linear"):
        load(path)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
def test_stored_types(tmp_path: Path, kind: Kind) -> None:
    config = LlamaConfig(96, 64, 4, 1, num_kv_heads=2, ffn_dim=96, max_seq_len=64)  # blocks of 32
    model, _ = load(write(tmp_path / "model.gguf", config, kind))
    expected = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}.get(kind, torch.float32)
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert model.quantization == (kind.name if expected == torch.float32 else None)
    exact, _ = load(write(tmp_path / "exact.gguf", config))
    assert exact.quantization is None
    # A step of the type, from a number's sign and largest magnitude m in a block of 32: 2^-10 m
    # and 2^-7 m for the two floats; else 2m over the number of levels. Rounding is half a step.
    # The scale is a float16, so relatively 2^-11 off; so is the offset of the "_1" types.
    levels = {Kind.Q8_0: 254, Kind.Q4_0: 15, Kind.Q4_1: 15, Kind.Q5_1: 31}
    step = {Kind.F16: 2**-10, Kind.BF16: 2**-7}.get(kind) or 2 / levels[kind]
    for name, weight in exact.named_parameters():
        if weight.dim() == 1:
            continue
        stored = model.get_parameter(name).float()
        blocks = (
            weight.view(-1, 32).abs().amax(1, keepdim=True).expand(-1, 32).reshape(weight.shape)
        )
        slack = 1.0 if kind == Kind.Q4_0 else 0.5  # its levels are -8 to 7: one end is a step short
        off = (stored - weight).abs()
        assert (off <= blocks * (slack * step + 2**-10)).all(), name
        assert off.max() > 0, name


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q8_0, Kind.Q4_0, Kind.Q6_K, Kind.IQ4_XS])
def test_quantised_tensors_are_those_of_the_gguf_package(kind: Kind) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 256, (3000, 6 * size), dtype=np.uint8)
    rows[:, ::16] = 17  # the half-precision scales: mostly finite numbers
    expected = gguf.dequantize(rows, kind)
    found = _dequantized(rows, kind)
    assert expected.size > 2 * _ELEMENTS_AT_ONCE and expected.shape == (3000, 6 * block)
    np.testing.assert_array_equal(found, expected)


def test_the_file_is_not_changed_by_training(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", SHAPES["gqa-tied"])
    content = path.read_bytes()
    model, _ = load(path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert path.read_bytes() == content


@pytest.mark.parametrize("kept", [4, 7, 8, 23, 24, 60, 400, 2000, 4000, 20_000, -1])
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "model.gguf", SHAPES["gqa-tied"])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.gguf: truncated or damaged GGUF file"):
        load(path)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_metadata_is_an_error_not_a_crash(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path / "model.gguf", SHAPES["gqa-tied"])
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    for _ in range(20):
        content[generator.integers(4, 3000)] = generator.integers(256)
    path.write_bytes(content)
    try:
        load(path)
    except CheckpointError as error:
        assert str(path) in str(error)


def test_errors_name_file_and_tensor(tmp_path: Path) -> None:
    config, path = SHAPES["gqa-tied"], tmp_path / "model.gguf"

    def rejects(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load(path)

    write(path, config, architecture="gpt2")
    rejects("expected architecture 'llama', got 'gpt2'")
    write(path, config, skip="blk.1.ffn_up.weight")
    rejects(rf"{path}: missing tensor 'blk\.1\.ffn_up\.weight'")
    write(path, config, skip="token_embd.weight")
    rejects(r"missing tensor 'token_embd\.weight'")
    write(path, config, **{"blk.0.attn_q.bias": np.zeros(48, np.float32)})
    rejects(r"unexpected tensor 'blk\.0\.attn_q\.bias'")
    wrong = {"blk.1.ffn_up.weight": np.zeros((80, 40), np.float32)}
    write(path, config, skip="blk.1.ffn_up.weight", **wrong)
    rejects(r"tensor 'blk\.1\.ffn_up\.weight': expected shape \(80, 48\), got \(80, 40\)")


def test_a_missing_number(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"metadata 'llama\.embedding_length' is missing"):
        load(path)


def test_big_endian_or_future_version(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 0, 0))
    with pytest.raises(CheckpointError, match=r"model\.gguf: truncated or damaged GGUF file"):
        load(path)
