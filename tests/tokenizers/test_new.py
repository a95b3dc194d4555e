"""Tokenizers that need no file: bytes, and a BPE learned here."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llama_fast.tokenizers import ByteTokenizer, TokenizerError, load_tokenizer
from llama_fast.tokenizers.train_bpe import train_bpe
from tests.paths import data_file


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = load_tokenizer("byte")
    ids = tokenizer.encode(text)
    assert bytes(ids) == text.encode()
    assert tokenizer.decode([256, *ids, 256]) == text


def test_the_end_of_text_is_one_token_only_when_asked_for() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("<|endoftext|>", special=True) == [256] == [tokenizer.eos_id]
    assert len(tokenizer.encode("<|endoftext|>")) == 13


def test_learned_bpe(tmp_path: Path) -> None:
    """Shorter than bytes, the same after loading, and the same in transformers."""
    text = data_file("corpora/tinyshakespeare.txt").read_text()
    learned = train_bpe([text], 1000, tmp_path)
    assert learned.vocab_size == 1000 and learned.bos_id == learned.eos_id == 0
    ids = learned.encode(text)
    assert len(ids) < 0.45 * len(text)
    assert learned.decode(ids) == text
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for sample in (text[:5000], "naïve 日本 \u0000 12345", "<|endoftext|>", "  a\n\n b"):
        ids = learned.encode(sample)
        assert learned.decode(ids) == sample
        assert load_tokenizer(tmp_path).encode(sample) == ids
        assert theirs.encode(sample, add_special_tokens=False, split_special_tokens=True) == ids


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size: expected at least 257, got 256"):
        train_bpe(["a"], 256, tmp_path)
    with pytest.raises(TokenizerError, match="expected a corpus large enough for 300 tokens"):
        train_bpe(["ab"], 300, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*tokenizer.json"):
        load_tokenizer(tmp_path)
