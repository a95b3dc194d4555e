"""llama2.c files: the trained stories260K in its three versions, and damaged copies."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from llama_fast.generation import generate
from llama_fast.models import CheckpointError, LLaMA, LlamaConfig, load
from tests.paths import data_file

FOLDER = "checkpoints/stories260k"
FLOAT32 = ("stories260K.bin", "checkpoint_v1.bin")
INT8 = "stories260K-q8.bin"


def story(path: Path) -> str:
    """What llama2.c's ``run -t 0.0`` prints: 256 greedy tokens, or fewer up to the next <s>."""
    model, tokenizer = load(path)
    assert tokenizer is not None
    tokens = generate(model, torch.tensor([[tokenizer.bos_id]]), 256, stop_ids=[tokenizer.bos_id])
    return tokenizer.decode(tokens[0].tolist())


def golden() -> str:
    text = (data_file(FOLDER) / "stories260K.md").read_text(encoding="utf-8")
    return text.split("-t 0.0\n")[1].split("\n```")[0]


@pytest.mark.parametrize("name", FLOAT32)
def test_stories260k_tells_its_golden_story(name: str) -> None:
    assert story(data_file(FOLDER) / name) == golden()


def test_int8_stories260k_begins_as_the_golden_story() -> None:
    first_sentences = golden()[: golden().index("\n")]
    assert story(data_file(FOLDER) / INT8).startswith(first_sentences)


def test_config_is_the_preset() -> None:
    for name in (*FLOAT32, INT8):
        model, _ = load(data_file(FOLDER) / name)
        assert model.config == LlamaConfig.preset("stories260k")
        assert not model.training


def test_versions_hold_the_same_weights() -> None:
    legacy, v1, int8 = (load(data_file(FOLDER) / name)[0] for name in (*FLOAT32, INT8))
    assert [model.quantization for model in (legacy, v1, int8)] == [None, None, "int8"]
    for name, weight in legacy.named_parameters():
        assert torch.equal(weight, v1.get_parameter(name)), name
        rounded = int8.get_parameter(name)
        if name.endswith("norm.weight"):
            assert torch.equal(weight, rounded), name
        else:  # symmetric, 127 steps to the largest weight of a group: at most half a step off
            half_step = weight.abs().max() / 127 / 2
            assert (weight - rounded).abs().max() <= half_step * (1 + 1e-6), name


def test_dtype_is_taken_over() -> None:
    model, _ = load(data_file(FOLDER) / FLOAT32[0], dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_file_is_not_changed_by_training(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    content = (data_file(FOLDER) / FLOAT32[1]).read_bytes()
    path.write_bytes(content)
    model, tokenizer = load(path)
    assert tokenizer is None  # none beside it
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert path.read_bytes() == content


def test_untied_legacy_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig(32, 16, 2, 1, ffn_dim=24, max_seq_len=8))
    path = tmp_path / "untied.bin"
    path.write_bytes(legacy(model))
    loaded, _ = load(path)
    tokens = torch.randint(32, (1, 8))
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(tokens), model.eval()(tokens))


def legacy(model: LLaMA) -> bytes:
    """A model in llama2.c's legacy format; a negative vocabulary size says that it is untied."""
    c, weights = model.config, model.state_dict()

    def rows_to_pairs(w: torch.Tensor) -> torch.Tensor:
        order = torch.arange(c.head_dim).view(2, -1).T.flatten()
        return w.view(-1, c.head_dim, c.embed_dim)[:, order].reshape(w.shape)

    head = ["attention_norm", "attention.q_proj", "attention.k_proj", "attention.v_proj"]
    tail = ["feed_forward.gate_proj", "feed_forward.down_proj", "feed_forward.up_proj"]
    order = ["embedding"]
    for module in [*head, "attention.o_proj", "feed_forward_norm", *tail]:
        order += [f"layers.{i}.{module}" for i in range(c.num_layers)]
    data = struct.pack(
        "<7i",
        c.embed_dim,
        c.ffn_dim,
        c.num_layers,
        c.num_heads,
        c.num_kv_heads,
        -c.vocab_size,
        c.max_seq_len,
    )
    for name in [*order, "norm", "rope", "head"]:
        if name == "rope":
            data += bytes(4 * c.max_seq_len * c.head_dim)
            continue
        weight = weights[f"{name}.weight"]
        if name.endswith(("q_proj", "k_proj")):
            weight = rows_to_pairs(weight)
        data += weight.numpy().tobytes()
    return data


@pytest.mark.parametrize("name", [*FLOAT32, INT8])
@pytest.mark.parametrize("kept", [0, 3, 28, 100, 256, 5000, -1])
def test_truncated_file(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes((data_file(FOLDER) / name).read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"cut\.bin: .*(truncated.* got \d+|expected a header)"
    ):
        load(path)


def test_file_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long.bin"
    path.write_bytes((data_file(FOLDER) / FLOAT32[0]).read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"too long: .* promises 1056540 bytes, got 1056541"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Ii", 0x616B3432, 3) + bytes(248), "version 1 or 2, got 3"),
        (b"no checkpoint at all, but text with some length", "of no known format"),
        (struct.pack("<7i", 64, 172, 5, 8, 3, 512, 512), "num_kv_heads: expected a divisor"),
        (struct.pack("<7i", 64, 172, 5, 0, 4, 512, 512), "no model has the sizes in its header"),
    ],
)
def test_wrong_headers(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_group_size_that_does_not_fit(tmp_path: Path) -> None:
    content = bytearray((data_file(FOLDER) / INT8).read_bytes())
    content[37:41] = struct.pack("<i", 0)
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected a group size that divides .* got 0"):
        load(path)
