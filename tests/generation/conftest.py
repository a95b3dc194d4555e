"""Models and prompts that the tests of generation share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_fast.generation import GenerationRequest
from llama_fast.models import LLaMA, LlamaConfig, load
from llama_fast.tokenizers import ByteTokenizer, Tokenizer
from tests.paths import data_file, mirror, smollm2


@pytest.fixture
def small() -> Iterator[tuple[LLaMA, Tokenizer]]:
    """A random model over bytes, whose likeliest tokens are no close calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model as small as this gains nothing from more
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug")).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    yield model, ByteTokenizer()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm() -> tuple[LLaMA, Tokenizer]:
    """SmolLM2-135M-Instruct in float32."""
    model, tokenizer = load(smollm2(), torch.float32)
    assert tokenizer is not None
    return model, tokenizer


def real_prompts(count: int) -> list[str]:
    """Beginnings of HellaSwag's and GSM8K's texts, by turns."""

    def field(path: Path, name: str) -> Iterator[str]:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)[name]

    activities = field(mirror() / "hub/Rowan/hellaswag/default/validation.jsonl", "ctx")
    questions = field(data_file("hub/openai/gsm8k/main/test.jsonl"), "question")
    pairs = zip(activities, questions, strict=False)
    return list(islice((text for pair in pairs for text in pair), count))


def random_requests(count: int, new: int = 20, **options: Any) -> list[GenerationRequest]:
    """Prompts of random bytes, of 1 to 120 of them."""
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 120, (count,), generator=generator).tolist()
    return [
        GenerationRequest(torch.randint(256, (n,), generator=generator).tolist(), new, **options)
        for n in lengths
    ]
