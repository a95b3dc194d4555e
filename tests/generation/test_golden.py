"""Texts that others' code generates from the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_fast.generation import Engine, GenerationRequest
from llama_fast.models import LLaMA, load, save
from llama_fast.tokenizers import Tokenizer, load_tokenizer
from tests.paths import data_file

from .conftest import real_prompts

FOLDER = "checkpoints/stories260k"


def test_stories260k_byte_for_byte() -> None:
    """llama2.c's greedy story; its program stops after 256 tokens."""
    fence = (data_file(FOLDER) / "stories260K.md").read_text(encoding="utf-8").split("```")[3]
    golden = fence.partition("-t 0.0\n")[2].removesuffix("\n")
    model, _ = load(data_file(FOLDER) / "stories260K.bin")
    tokenizer = load_tokenizer(data_file(FOLDER) / "tok512.bin")
    assert tokenizer.bos_id is not None
    requests = [GenerationRequest([tokenizer.bos_id], 256)] * 3
    for result in Engine(model, tokenizer).generate(requests):
        assert result.text.encode() == golden.encode()


@pytest.mark.slow
def test_smollm2_gives_transformers_tokens(smollm: tuple[LLaMA, Tokenizer], tmp_path: Path) -> None:
    """50 real prompts, greedy, float32: every token that transformers' `generate` gives."""
    import transformers

    model, tokenizer = smollm
    save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompts = [tokenizer.encode(text)[:48] for text in real_prompts(50)]
    requests = [GenerationRequest(prompt, 32) for prompt in prompts]
    ours = [result.tokens for result in Engine(model, tokenizer, max_batch=24).generate(requests)]
    for first in range(0, 50, 25):
        batch = prompts[first : first + 25]
        width = max(map(len, batch))
        padded = torch.tensor([[0] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        out = theirs.generate(
            padded, attention_mask=mask, do_sample=False, pad_token_id=0,
            min_new_tokens=32, max_new_tokens=32, eos_token_id=None,
        )  # fmt: skip
        assert ours[first : first + 25] == out[:, width:].tolist()
