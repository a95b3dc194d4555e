"""Each tokenizer against golden ids of the original one, and its errors."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import gguf
import pytest

from llama_fast.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    TokenizerError,
    from_gguf,
    load_tokenizer,
)
from tests.paths import shared_data, smollm2

GGUF_TINY = "checkpoints/gguf_tiny/llama-2-tiny-random.gguf"
SEPARATOR = "\n__ggml_vocab_test__\n"


def golden(kind: str) -> list[tuple[str, list[int]]]:
    folder = shared_data("tokenizers/golden")
    inputs = (folder / f"ggml-vocab-llama-{kind}.gguf.inp").read_bytes().decode("utf-8")
    outputs = (folder / f"ggml-vocab-llama-{kind}.gguf.out").read_text()
    texts = inputs.removesuffix(SEPARATOR).split(SEPARATOR)
    ids = [[int(i) for i in line.split()] for line in outputs.removesuffix("\n").split("\n")]
    assert len(texts) == 46
    return list(zip(texts, ids, strict=True))


def metadata(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.fixture(scope="module")
def llama2() -> Tokenizer:
    return load_tokenizer(shared_data("tokenizers/llama2/tokenizer.model"))


@pytest.fixture(scope="module")
def llama2_gguf() -> Tokenizer:
    return from_gguf(metadata(shared_data(GGUF_TINY)))


@pytest.fixture(scope="module")
def llama3() -> Tokenizer:
    return load_tokenizer(shared_data("tokenizers/llama3/tokenizer.model"))


@pytest.fixture(scope="module")
def llama3_gguf() -> Tokenizer:
    return from_gguf(llama3_metadata(shared_data("tokenizers/llama3/tokenizer.model")))


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Tokenizer:
    return from_gguf(metadata(smollm2()))


def llama3_metadata(path: Path) -> dict[str, Any]:
    """What llama.cpp's converter writes for Llama 3: the merges that the ranks imply."""
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)

    def last_merge(token: bytes, rank: int) -> list[bytes]:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            if min(pairs) == rank:  # no merge makes this token: it is found whole or not at all
                return []
            i = pairs.index(min(pairs))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    merges = [last_merge(token, rank) for token, rank in ranks.items() if len(token) > 1]
    # GPT-2 writes bytes as printable characters.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}

    def written(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|special {i}|>" for i in range(254))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [written(token) for token in ranks] + special,
        "tokenizer.ggml.token_type": [1] * len(ranks) + [3] * 256,
        "tokenizer.ggml.merges": [" ".join(map(written, pair)) for pair in merges if pair],
        "tokenizer.ggml.bos_token_id": 128000,
        "tokenizer.ggml.eos_token_id": 128001,
    }


@pytest.mark.parametrize(
    ("fixture", "kind"),
    [("llama2", "spm"), ("llama2_gguf", "spm"), ("llama3", "bpe"), ("llama3_gguf", "bpe")],
)
def test_golden_ids(fixture: str, kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    for text, ids in golden(kind):
        assert tokenizer.encode(text) == ids, repr(text)
        assert tokenizer.decode(ids) == text, repr(text)


@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_smollm2_gives_every_text_back(kind: str, smollm2_tokenizer: Tokenizer) -> None:
    for text, _ in golden(kind):
        ids = smollm2_tokenizer.encode(text)
        assert smollm2_tokenizer.decode(ids) == text, repr(text)


def test_smollm2_splits_digits(smollm2_tokenizer: Tokenizer) -> None:
    ids = smollm2_tokenizer.encode("In 1984")
    assert [smollm2_tokenizer.decode([i]) for i in ids] == ["In", " ", "1", "9", "8", "4"]


def test_stories260k() -> None:
    tokenizer = load_tokenizer(shared_data("checkpoints/stories260k/tok512.bin"))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
    # The best-scored merges first; an unknown character as its bytes
    assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]
    assert tokenizer.encode("🦙") == [410, *(3 + byte for byte in "🦙".encode())]
    for text in ("Once upon a time, Lily saw 🦙.", "", " two  spaces ", "line\nbreak"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


SIZES = {
    "llama2": (32000, 1, 2),
    "llama2_gguf": (32000, 1, 2),
    "llama3": (128256, 128000, 128001),
    "llama3_gguf": (128256, 128000, 128001),
    "smollm2_tokenizer": (49152, 1, 2),
}


@pytest.mark.parametrize("fixture", SIZES)
def test_control_tokens(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == SIZES[fixture]
    end = next(name for name, i in tokenizer.special.items() if i == tokenizer.eos_id)
    as_text = tokenizer.encode(end)
    assert tokenizer.eos_id not in as_text  # a text can't end a turn
    assert tokenizer.decode(as_text) == end
    assert tokenizer.encode(f"{end}{end}", special=True) == [tokenizer.eos_id] * 2
    ids = tokenizer.encode(f"yes{end}", special=True)
    assert ids == [*tokenizer.encode("yes"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "yes"


@pytest.mark.parametrize("fixture", SIZES)
def test_parts_of_characters(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    ids = tokenizer.encode("🦙")
    assert len(ids) > 1
    assert "\ufffd" in tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("fixture", SIZES)
def test_errors(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    with pytest.raises(TypeError, match="text: expected a str, got bytes"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]
    size = tokenizer.vocab_size
    with pytest.raises(
        IndexError, match=rf"ids: expected ids in \[0, {size}\), got {size} at .* 1"
    ):
        tokenizer.decode([0, size])
    with pytest.raises(IndexError, match="got -1 at position 0"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("character", [" ", "a", "\n"])
def test_llama3_takes_very_long_runs(llama3: Tokenizer, character: str) -> None:
    text = f"x{character * 300_000}y"
    assert llama3.decode(llama3.encode(text)) == text


def test_llama3_names_its_control_tokens(llama3: Tokenizer) -> None:
    # github.com/meta-llama/llama-models, models/llama3/prompt_templates
    expected = {"<|start_header_id|>": 128006, "<|end_header_id|>": 128007, "<|eot_id|>": 128009}
    assert expected.items() <= llama3.special.items()
    assert sorted(llama3.special.values()) == list(range(128000, 128256))


def test_a_gguf_file_is_a_tokenizer_file(llama2_gguf: Tokenizer, tmp_path: Path) -> None:
    path = shared_data(GGUF_TINY)
    tokenizer = load_tokenizer(path)
    text = "A text, \u00e9t\u00e9."
    assert tokenizer.encode(text) == llama2_gguf.encode(text)
    assert tokenizer.add_bos == llama2_gguf.add_bos
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TokenizerError, match=r"damaged\.gguf: truncated or damaged GGUF file"):
        load_tokenizer(damaged)


@pytest.mark.parametrize("fixture", ["llama2", "llama2_gguf", "llama3", "smollm2_tokenizer"])
def test_lone_surrogates_are_replaced(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    assert tokenizer.encode("a \ud83d b \ud83d\ude00") == tokenizer.encode("a \ufffd b \U0001f600")


@pytest.mark.parametrize("fixture", ["llama2", "llama2_gguf", "llama3", "smollm2_tokenizer"])
def test_a_text_that_goes_on(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    begin = tokenizer.encode("It is")
    for text in (" four", "\n", "4"):
        assert begin + tokenizer.encode(text, continues=True) == tokenizer.encode("It is" + text)


def test_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: no such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    path = tmp_path / "vocab.txt"
    path.write_text("a")
    with pytest.raises(TokenizerError, match=r"vocab\.txt: expected a \.json, .* or \.gguf file"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("tokenizer.model", b"\n\x05damaged", "not a SentencePiece model"),
        ("tokenizer.model", b"IQ== 0\nIg== one\n", "line 2"),
        ("tokenizer.model", b"IQ== 0\nIg== 2\n", "expected ranks 0, 1, 2"),
        ("tokenizer.model", b"IQ== 0\n!!\n", "line 2"),
        ("tok.bin", b"\x07\0\0\0\0\0\0\0\x05\0\0\0ab", "truncated or damaged"),
        ("tok.bin", b"\x07\0\0\0\0\0", "truncated or damaged"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{name}: .*{message}"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "expected 'gpt2' or 'llama', got 'bert'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "expected one of gpt-2, .*, got 'qwen2'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens' is missing"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores' is missing"),
    ],
)
def test_gguf_tokenizers_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.token_type": [1],
        "tokenizer.ggml.merges": [],
        **changes,
    }
    with pytest.raises(TokenizerError, match=message):
        from_gguf({key: value for key, value in fields.items() if value is not None})


def test_begin_and_end_of_documents_and_prompts() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode_document("ab") == [256, 97, 98, 256]
    assert tokenizer.encode_document("ab", end=False) == [256, 97, 98]
    assert tokenizer.encode_prompt("ab") == [97, 98]  # add_bos is not set
    assert tokenizer.encode_prompt("") == [256]
    assert tokenizer.encode_prompt("a<|endoftext|>", special=True) == [97, 256]
    tokenizer.add_bos = True
    assert tokenizer.encode_prompt("ab") == tokenizer.prepend_bos([97, 98]) == [256, 97, 98]
    assert tokenizer.prepend_bos([256, 97]) == [256, 97]
    tokenizer.bos_id = tokenizer.eos_id = None
    assert tokenizer.encode_document("ab") == tokenizer.encode_prompt("ab") == [97, 98]
    with pytest.raises(ValueError, match="prompt: expected a text, because the tokenizer has no"):
        tokenizer.encode_prompt("")
