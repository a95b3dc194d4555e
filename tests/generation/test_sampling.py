from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llama_fast.generation import Engine, GenerationRequest, generate, stream
from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.tokenizers import ByteTokenizer


@pytest.fixture
def model() -> Iterator[LLaMA]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model as small as this gains nothing from more
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug")).eval()
    with torch.no_grad():  # far from even, so that the likeliest token is no close call
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    yield model
    torch.set_num_threads(threads)


PROMPT = torch.randint(256, (3, 5), generator=torch.Generator().manual_seed(1))


def test_greedy_takes_the_likeliest_token_of_the_whole_text(model: LLaMA) -> None:
    tokens = generate(model, PROMPT, 10)
    assert tokens.shape == (3, 15)
    assert torch.equal(tokens[:, :5], PROMPT)
    for end in range(5, 15):  # without a cache
        with torch.no_grad():
            assert torch.equal(tokens[:, end], model(tokens[:, :end])[:, -1].argmax(-1))


def test_rows_do_not_see_each_other(model: LLaMA) -> None:
    together = generate(model, PROMPT, 8)
    for row, prompt in zip(together, PROMPT, strict=True):
        assert torch.equal(generate(model, prompt[None], 8)[0], row)


def test_sampling_follows_the_probabilities(model: LLaMA) -> None:
    prompt, temperature, n = PROMPT[:1].expand(20_000, 5), 2.0, 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = generate(model, prompt, 1, temperature=temperature, generator=generator)[:, -1]
    with torch.no_grad():
        p = (model(PROMPT[:1])[0, -1].double() / temperature).softmax(-1)
    frequency = torch.bincount(drawn, minlength=256) / n
    # Each frequency is within 5 of its standard deviations.
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def test_sampling_repeats_with_the_generator(model: LLaMA) -> None:
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPT, 20, temperature=1.5, generator=generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_a_row_ends_with_its_first_stop_id(model: LLaMA) -> None:
    free = generate(model, PROMPT, 12)
    stop = free[1, 8].item()
    stopped = generate(model, PROMPT, 12, stop_ids=[stop])
    ends = []
    for row, whole in zip(stopped, free, strict=True):
        found = (whole[5:] == stop).nonzero()
        end = 5 + int(found[0]) + 1 if len(found) else 17
        ends.append(end)
        assert torch.equal(row[:end], whole[:end][: len(row)])
        assert (row[end:] == stop).all()
    assert stopped.shape[1] == min(17, max(ends))
    alone = generate(model, PROMPT[1:2], 12, stop_ids=[stop])
    assert alone.shape[1] == ends[1]  # nothing is generated after all rows have ended


def test_stream_gives_the_new_tokens_one_by_one(model: LLaMA) -> None:
    steps = list(stream(model, PROMPT, 6))
    assert torch.equal(torch.stack(steps, dim=1), generate(model, PROMPT, 6)[:, 5:])
    assert torch.equal(generate(model, PROMPT, 0), PROMPT)


def test_one_prompt_needs_no_batch_dimension(model: LLaMA) -> None:
    expected = generate(model, PROMPT[:1], 6)[0]
    assert torch.equal(generate(model, PROMPT[0], 6), expected)
    assert torch.equal(generate(model, PROMPT[0].tolist(), 6), expected)
    assert torch.equal(generate(model, PROMPT[:1].int(), 6)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_engine_generates_the_same(model: LLaMA, dtype: torch.dtype) -> None:
    """Function, engine and command take one path through the model."""
    model = model.to(dtype)
    requests = [GenerationRequest(row.tolist(), 20) for row in PROMPT]
    engine = Engine(model, ByteTokenizer(), max_batch=len(requests))
    expected = [result.tokens for result in engine.generate(requests)]
    assert generate(model, PROMPT, 20)[:, 5:].tolist() == expected


def test_a_model_in_training_mode_drops_out() -> None:
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug", p_dropout=0.5)).train()
    assert not torch.equal(generate(model, PROMPT, 20), generate(model, PROMPT, 20))


def test_generated_tokens_can_be_trained_on(model: LLaMA) -> None:
    tokens = generate(model, PROMPT, 4)
    model.loss(tokens, tokens, shift=True).backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize(
    ("tokens", "number", "options", "message"),
    [
        (PROMPT[:, :0], 1, {}, r"tokens: expected at least one token a row, got shape \(3, 0\)"),
        (PROMPT, -1, {}, "max_new_tokens: expected a number >= 0, got -1"),
        (PROMPT, 252, {}, r"max_new_tokens: expected at most 251 after a prompt of 5"),
        (PROMPT.float(), 1, {}, r"tokens: expected ids of shape .* got torch.float32 of \(3, 5\)"),
        (PROMPT[None], 1, {}, r"tokens: expected ids of shape .* got torch.int64 of \(1, 3, 5\)"),
        (PROMPT, 1, {"temperature": -0.5}, "temperature: expected a number >= 0, got -0.5"),
        (PROMPT, 1, {"temperature": float("nan")}, "temperature: expected .* got nan"),
    ],
)
def test_errors(
    model: LLaMA, tokens: torch.Tensor, number: int, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, tokens, number, **options)


def test_without_a_number_of_tokens_it_adds_256_or_what_fits() -> None:
    torch.manual_seed(0)
    options = {"vocab_size": 64, "embed_dim": 32, "num_heads": 2, "num_layers": 1}
    for max_seq_len, expected in ((300, 256), (20, 18), (2, 0)):
        model = LLaMA(**options, max_seq_len=max_seq_len).eval()
        assert generate(model, [1, 2]).shape == (2 + expected,)
        assert len(list(stream(model, [1, 2]))) == expected
