"""Models whose rotary factors follow from a sequence's length: each request gets its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.eval.engine import Likelihood, Scorer
from llama_fast.generation import Engine, GenerationRequest
from llama_fast.integrations.any_model import decoder_of
from tests.eval.test_harness import tiny

LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0]}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
BY_LAYER = {"full_attention": LONG, "sliding_attention": DYNAMIC}


def longrope(kind: str, rope: dict[str, Any], **changes: Any) -> torch.nn.Module:
    changes = {"pad_token_id": 0, "initializer_range": 0.2, **changes}
    if kind == "phi3":  # its configuration says it elsewhere, too
        changes["original_max_position_embeddings"] = 24
    if kind == "gemma3_text":
        changes["layer_types"] = ["full_attention", "sliding_attention"] * 2
    return tiny(kind, rope_parameters=rope, **changes)


@pytest.mark.parametrize(
    ("kind", "rope", "most"),
    [
        ("llama", LONG, 512),
        ("phi3", {**LONG, "partial_rotary_factor": 1.0}, 512),  # has a rotary module of its own
        ("gemma3_text", BY_LAYER, 40),  # one module for layers of two kinds
        ("llama", DYNAMIC, 40),
    ],
    ids=["llama", "phi3", "gemma3", "dynamic"],
)
@pytest.mark.parametrize("patch", [False, True])
def test_rotary_factors_of_each_request(
    kind: str, rope: dict[str, Any], most: int, patch: bool
) -> None:
    """Short requests beside long ones, prefixes shared and passes cut: as each has it alone.

    The model has seen a longer text before, which dynamic NTK would remember.
    """
    model = longrope(kind, rope, max_position_embeddings=most)
    fresh = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    header = torch.randint(1, 300, (8,), generator=generator).tolist()
    pairs: list[tuple[list[int], list[int]]] = []
    for length in (4, 15, 16, 17, 18, 30, 33):  # to both sides of 24 tokens; the last asks for 40
        tail = torch.randint(1, 300, (length,), generator=generator).tolist()
        pairs.append(([*header, *tail[:-3]], tail[-3:]))
    expected = []
    for context, continuation in pairs:
        with torch.no_grad():
            alone = copy.deepcopy(fresh)
            logits = alone(torch.tensor([[*context, *continuation[:-1]]])).logits[0]
        logprobs = logits[len(context) - 1 :].double().log_softmax(-1)
        expected.append(logprobs.gather(1, torch.tensor(continuation).unsqueeze(1)).sum().item())
    if patch:
        llama_fast.patch(model)
    with torch.no_grad():
        model(torch.ones(1, 60, dtype=torch.int64))
    for budget in (7, 2048):
        seen: list[tuple[int, Likelihood]] = []
        found = Scorer(decoder_of(model), budget=budget).score(pairs, seen.extend)
        assert [a.logprob for a in found] == pytest.approx(expected, rel=1e-4)
        assert sorted(seen) == list(enumerate(found))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert not any(hooks)


def test_generation_within_the_short_rotary_factors() -> None:
    """Short prompts are as alone; where a text would pass to other factors, it is refused."""
    model = longrope("llama", LONG)
    prompts = [list(range(2, 2 + n)) for n in (3, 9, 16)]
    expected = [
        model.generate(torch.tensor([p]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0]
        for p in prompts
    ]
    engine = Engine(decoder_of(model), llama_fast.tokenizers.ByteTokenizer())
    requests = [GenerationRequest(p, max_new_tokens=8, stop_ids=()) for p in prompts]
    found = engine.generate(requests)
    for prompt, want, got in zip(prompts, expected, found, strict=True):
        assert [*prompt, *got.tokens] == want.tolist()
    with pytest.raises(ValueError, match=r"request 0: .* rotary factors .* got 25 tokens"):
        engine.generate([GenerationRequest(prompts[2], max_new_tokens=9)])
