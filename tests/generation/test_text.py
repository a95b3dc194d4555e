"""Tokens to text as they come."""

from __future__ import annotations

import gguf
import pytest

from llama_fast.generation.text import TextStream
from llama_fast.tokenizers import ByteTokenizer, Tokenizer, from_gguf, load_tokenizer
from tests.paths import data_file, smollm2

TEXT = "The café – naïve 日本語 🎈🇩🇪 text\n\nQuestion: 1 + 1 = 2."


@pytest.fixture(scope="module", params=["byte", "spm", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    if request.param == "spm":
        return load_tokenizer(data_file("checkpoints/stories260k/tok512.bin"))
    fields = gguf.GGUFReader(smollm2()).fields
    return from_gguf({key: field.contents() for key, field in fields.items()})


def pieces_of(tokenizer: Tokenizer, prompt: str, text: str, stop: list[str]) -> tuple[list[str], TextStream]:  # fmt: skip  # noqa: E501
    ids = tokenizer.encode(prompt + text)
    begin = len(tokenizer.encode(prompt))
    stream = TextStream(tokenizer, ids[:begin], stop)
    pieces = []
    for token in ids[begin:]:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream


@pytest.mark.parametrize("prompt", ["", "Once:", "Hello there, the world is large, and so it is."])
def test_pieces_make_the_text(tokenizer: Tokenizer, prompt: str) -> None:
    pieces, stream = pieces_of(tokenizer, prompt, " " + TEXT if prompt else TEXT, [])
    assert "".join(pieces) == stream.text == (" " + TEXT if prompt else TEXT)


def test_no_piece_has_half_a_character() -> None:
    pieces, _ = pieces_of(ByteTokenizer(), "", TEXT, [])
    assert all("\ufffd" not in piece for piece in pieces)
    assert "日" in pieces  # whole, with its last byte


def test_bytes_that_never_become_a_character_come_out_in_the_end() -> None:
    stream = TextStream(ByteTokenizer(), [], [])
    assert [stream.add(b) for b in b"a\xe6\x97"] == ["a", "", ""]
    assert stream.finish() == "\ufffd"
    stream = TextStream(ByteTokenizer(), [], [])
    assert "".join(map(stream.add, b"\xff\xfe!")) == "\ufffd\ufffd!"


@pytest.mark.parametrize(
    ("stop", "end"),
    [
        (["Question:"], "🇩🇪 text\n\n"),
        (["\n\n"], "text"),
        (["1 + 1", "text"], "🎈🇩🇪 "),
        (["語 🎈"], "日本"),
        (["Question: 1 + 1 = 3", "nowhere"], "= 2."),
        (["."], "= 2"),
    ],
    ids=str,
)
def test_text_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, stop: list[str], end: str
) -> None:
    pieces, stream = pieces_of(tokenizer, "Say:", " " + TEXT, stop)
    whole = " " + TEXT
    cut = min((at for s in stop if (at := whole.find(s)) >= 0), default=len(whole))
    assert stream.text == "".join(pieces) == whole[:cut]
    assert stream.text.endswith(end)
    assert stream.stopped == (cut < len(whole))
    for n in range(len(pieces)):  # nothing is ever taken back, and no stop string shown
        assert not any(s in "".join(pieces[:n]) for s in stop)


def test_overlapping_beginnings_of_stop_strings() -> None:
    pieces, stream = pieces_of(ByteTokenizer(), "", "aaabaab", ["aab"])
    assert (stream.text, stream.stopped) == ("a", True)
    assert pieces[:4] == ["", "", "a", ""]
    pieces, stream = pieces_of(ByteTokenizer(), "", "ababac!", ["abac", "zz"])
    assert (stream.text, stream.stopped) == ("ab", True)


def test_a_prompt_that_ends_inside_a_character() -> None:
    stream = TextStream(ByteTokenizer(), list(b"x\xe6\x97"), [])
    assert stream.add(0xA5) == "日"
