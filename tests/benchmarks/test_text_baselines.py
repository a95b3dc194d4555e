"""Bits per byte that a model has to beat."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest

from llama_fast.cli.bench import suite

baselines = suite("text_baselines")

TEXT = (b"She sells sea shells by the sea shore; the shells she sells are sea shells. " * 40)[:2000]


def kneser_ney(train: bytes, context: bytes, byte: int, order: int, highest: bool) -> float:
    """The probability of a byte, by the book, one n-gram at a time."""
    if order == 0:
        return 1 / 256
    grams = [train[i : i + order] for i in range(len(train) - order + 1)]
    if highest:
        counts = Counter(grams)
    else:
        longer = {train[i : i + order + 1] for i in range(len(train) - order)}
        counts = Counter(gram[1:] for gram in longer)
    once, twice = (sum(c == n for c in counts.values()) for n in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    history = context[len(context) - (order - 1) :]
    follow = {g: c for g, c in counts.items() if g[:-1] == history}
    lower = kneser_ney(train, context, byte, order - 1, False)
    if not follow:
        return lower
    total = sum(follow.values())
    found = max(counts.get(history + bytes([byte]), 0) - discount, 0)
    return (found + discount * len(follow) * lower) / total


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngrams_by_the_book(order: int) -> None:
    train, valid = TEXT[:300], b"the sea ox sells"
    bits = baselines.ngrams(train, valid)[order - 1]
    text = train + valid
    expected = [
        -math.log2(kneser_ney(train, text[:i], text[i], order, True))
        for i in range(len(train), len(text))
    ]
    assert bits == pytest.approx(np.mean(expected), rel=1e-12)


def test_the_bytes_of_a_context_share_all_the_probability() -> None:
    train = TEXT[:300]
    for context in (b"the s", b"qqqqq"):
        mass = sum(kneser_ney(train, context, b, 4, True) for b in range(256))
        assert mass == pytest.approx(1)


def test_xz_counts_what_the_held_out_text_adds() -> None:
    random = np.random.default_rng(0).bytes(4000)
    assert baselines.xz(TEXT, random) == pytest.approx(8, abs=0.3)
    assert baselines.xz(random, random) < 0.3  # it was read before
    assert baselines.xz(b"", TEXT) < 8 * len(zlib.compress(TEXT)) / len(TEXT) + 1
