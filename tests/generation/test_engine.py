"""Continuous batching gives each request what it would get alone."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from llama_fast._energy import RaplMeter
from llama_fast.generation import Engine, GenerationRequest, GenerationResult, SamplingOptions
from llama_fast.models import LLaMA
from llama_fast.tokenizers import Tokenizer
from tests.powercap import count, domain

from .conftest import random_requests

Small = tuple[LLaMA, Tokenizer]
SAMPLED = SamplingOptions(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=7)


def alone(small: Small, requests: list[GenerationRequest]) -> list[GenerationResult]:
    return [Engine(*small).generate([request])[0] for request in requests]


def test_greedy_is_that_of_the_whole_text_without_a_cache(small: Small) -> None:
    model, tokenizer = small
    request = GenerationRequest(tokenizer.encode("Once upon a time"), 30)
    [result] = Engine(model, tokenizer).generate([request])
    tokens = list(request.tokens)
    with torch.no_grad():
        for _ in range(30):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert result.tokens == tokens[-30:]
    assert result.text == tokenizer.decode(tokens)[len("Once upon a time") :]
    assert result.finish_reason == "length"


@pytest.mark.parametrize("sampling", [SamplingOptions(), SAMPLED], ids=["greedy", "sampled"])
def test_the_same_in_any_company_and_order(small: Small, sampling: SamplingOptions) -> None:
    requests = random_requests(16, new=12, sampling=sampling)
    expected = alone(small, requests)
    order = list(range(16))
    random.Random(0).shuffle(order)
    for batch, prefill in ((1, 2048), (3, 17), (7, 64), (64, 2048)):
        engine = Engine(*small, max_batch=batch, prefill_tokens=prefill)
        assert engine.generate(requests) == expected
        shuffled = engine.generate([requests[i] for i in order])
        assert shuffled == [expected[i] for i in order]


def test_the_same_where_memory_is_short(small: Small) -> None:
    """With pages for little more than the longest request, sequences are put back often."""
    requests = random_requests(12, new=60, sampling=SAMPLED)
    expected = Engine(*small).generate(requests)
    engine = Engine(*small, max_batch=8, cache_tokens=192)
    assert engine.generate(requests) == expected
    assert engine.preempted > 3
    assert engine.cache.free == 12  # nothing is lost
    assert engine.cache.pages == 12


def test_a_common_beginning_is_computed_once(small: Small) -> None:
    header = torch.randint(256, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    requests = [GenerationRequest([*header, n, n + 1], 12) for n in range(20)]
    engine = Engine(*small)
    assert engine.generate(requests) == alone(small, requests)
    # Six full pages of 16 are shared; the other tokens, and the first prompt, are computed.
    assert engine.prefilled == 102 + 19 * (102 - 96)
    assert engine.reused == 19 * 96
    assert engine.cache.free == engine.cache.max_pages  # nothing stays for requests that have ended


def test_beginnings_are_shared_as_a_tree(small: Small) -> None:
    """Four groups with a common header each, all with one more in front: out of order."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(256, (64,), generator=generator).tolist()
    groups = [torch.randint(256, (32,), generator=generator).tolist() for _ in range(4)]
    requests = [GenerationRequest([*first, *groups[n % 4], n], 6) for n in range(24)]
    engine = Engine(*small, max_batch=5)
    assert engine.generate(requests) == alone(small, requests)
    assert engine.prefilled == 64 + 4 * 32 + 24


def test_a_prompt_twice_computes_its_last_page_again(small: Small) -> None:
    requests = [GenerationRequest(list(range(64)), 4)] * 2
    engine = Engine(*small)
    a, b = engine.generate(requests)
    assert a == b
    assert engine.prefilled == 64 + 16  # the last token has to pass the model


def test_a_chunk_of_one_token_completes_a_page_for_others(small: Small) -> None:
    requests = [GenerationRequest(list(range(48)), 3), GenerationRequest(list(range(60)), 3)]
    engine = Engine(*small, prefill_tokens=47)
    assert engine.generate(requests) == alone(small, requests)
    assert engine.reused == 48


def test_shared_pages_under_memory_pressure(small: Small) -> None:
    header = list(range(100, 180))
    requests = [GenerationRequest([*header, n, n], 40) for n in range(12)]
    engine = Engine(*small, max_batch=6, cache_tokens=256)
    assert engine.generate(requests) == alone(small, requests)
    assert engine.preempted > 0


def test_kept_turns_are_not_computed_again(small: Small) -> None:
    engine = Engine(*small, keep_finished=1)
    prompt = list(range(50))
    [first] = engine.generate([GenerationRequest(prompt, 30)])
    longer = [*prompt, *first.tokens, 1, 2, 3]
    [second] = engine.generate([GenerationRequest(longer, 10)])
    assert second == Engine(*small).generate([GenerationRequest(longer, 10)])[0]
    assert engine.reused == 64  # of the 79 that had keys and values
    engine.generate([GenerationRequest([9, 9, 9], 4)])
    assert engine.cache.max_pages - engine.cache.free == 0  # too short for a page to stay


def test_stop_ids(small: Small) -> None:
    [request] = random_requests(1, new=40)
    [free] = alone(small, [request])
    stop = free.tokens[10]
    [found] = Engine(*small).generate([dataclasses.replace(request, stop_ids={stop})])
    assert found.finish_reason == "stop"
    assert found.tokens == free.tokens[: free.tokens.index(stop) + 1]


def test_the_model_s_context_ends_a_text(small: Small) -> None:
    request = GenerationRequest(list(range(250)), 100)
    [found] = Engine(*small).generate([request])
    assert (len(found.tokens), found.finish_reason) == (6, "length")  # 256 with the prompt


def test_results_come_as_they_are_done_and_in_order(small: Small) -> None:
    requests = [dataclasses.replace(r, max_new_tokens=n) for r, n in
                zip(random_requests(3), (30, 1, 10), strict=True)]  # fmt: skip
    done: list[tuple[int, GenerationResult]] = []
    results = Engine(*small).generate(requests, on_done=lambda i, r: done.append((i, r)))
    assert [index for index, _ in done] == [1, 2, 0]
    assert all(results[index] == result for index, result in done)
    assert [len(result.tokens) for result in results] == [30, 1, 10]


def test_the_pieces_of_a_stream_are_the_text(small: Small) -> None:
    requests = random_requests(6)
    texts = [""] * 6
    for piece in Engine(*small, max_batch=3).stream(requests):
        texts[piece.index] += piece.text
        if piece.result is not None:
            assert texts[piece.index] == piece.result.text


def test_a_stream_that_is_left_gives_all_back(small: Small) -> None:
    engine = Engine(*small, max_batch=3)
    stream = engine.stream(random_requests(6))
    for _ in range(9):
        next(stream)
    with pytest.raises(RuntimeError, match="earlier stream"):
        next(engine.stream([]))
    stream.close()
    assert engine.cache.free == engine.cache.max_pages
    assert engine.generate(random_requests(2)) == alone(small, random_requests(2))


def test_requests_are_taken_as_they_are_needed(small: Small) -> None:
    """An endless source."""

    def source() -> object:
        n = 0
        while True:
            n += 1
            yield GenerationRequest([n % 256, 1, 2], 3)

    done = set()
    for piece in Engine(*small, max_batch=4).stream(source()):  # type: ignore[arg-type]
        if piece.result is not None:
            done.add(piece.index)
        if len(done) == 20:
            break
    assert done == set(range(20))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerationRequest([], 5), "request 1: expected at least one token"),
        (GenerationRequest([1] * 256, 5), "request 1: expected a prompt shorter than .* 256"),
        (GenerationRequest([1], 0), "request 1: expected max_new_tokens >= 1, got 0"),
        (GenerationRequest([1, 256], 5), r"request 1: expected ids in \[0, 256\), got 256"),
        (GenerationRequest([1], 5, stop=[""]), "request 1: expected stop strings"),
        (
            GenerationRequest([1] * 50, 50),
            "request 1: expected at most the cache's 96 tokens, .* got 100",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_requests(small: Small, request_: GenerationRequest, message: str) -> None:
    engine = Engine(*small, cache_tokens=100)
    with pytest.raises(ValueError, match=message):
        engine.generate([GenerationRequest([1], 2), request_])
    assert engine.generate([GenerationRequest([1], 2)])  # and goes on


@pytest.mark.parametrize("name", ["max_batch", "prefill_tokens", "cache_tokens"])
def test_impossible_engines(small: Small, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Engine(*small, **{name: 0})


def test_sequences_of_a_pass_share_its_energy(small: Small, tmp_path: Path) -> None:
    """A counter that advances by 3 J after each piece: no joule is lost or counted twice."""
    counter = domain(tmp_path, "0", "package-0", 0)
    requests = [GenerationRequest([1, 2, 3], new) for new in (1, 4, 9)]
    engine = Engine(*small, meter=RaplMeter(tmp_path), max_batch=2)
    joules, pieces = {}, 0
    for piece in engine.stream(requests):
        if piece.result is not None:
            joules[piece.index] = piece.result.joules
        count(counter, 3_000_000)
        pieces += 1
    assert pieces == 14
    assert sum(joules.values()) == pytest.approx(3 * (pieces - 1))  # the last comes after all
    assert joules[0] == 0 < joules[1] < joules[2]
    assert Engine(*small).generate(requests)[0].joules is None
