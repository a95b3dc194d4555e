"""Each tokenizer against golden ids of the original one, and its errors."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from functools import cache
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
from tests.paths import (
    META_TOKENIZERS,
    data_file,
    extra,
    gguf_tiny,
    original,
    smollm2,
    tokenizer_model,
)

GOLDEN = {
    "mistral": "mistral.ids",
    "tekken": "tekken.ids",
    "llama2": "ggml-vocab-llama-spm.gguf.out",
    "llama3": "ggml-vocab-llama-bpe.gguf.out",
}
SEPARATOR = "\n__ggml_vocab_test__\n"


def golden(kind: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's strings and their ids by a tokenizer, which another library wrote down."""
    folder = data_file("tokenizers/golden")
    inputs = (folder / "ggml-vocab-llama-spm.gguf.inp").read_bytes().decode("utf-8")
    outputs = (folder / GOLDEN[kind]).read_text()
    texts = inputs.removesuffix(SEPARATOR).split(SEPARATOR)
    ids = [[int(i) for i in line.split()] for line in outputs.removesuffix("\n").split("\n")]
    assert len(texts) == 46
    return list(zip(texts, ids, strict=True))


def metadata(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@cache
def made(form: str) -> Tokenizer:
    """A tokenizer of its own file, or ("NAME_gguf") of what a GGUF file says of it."""
    name, _, gguf_form = form.partition("_")
    if name == "smollm2":
        return from_gguf(metadata(smollm2()))
    if not gguf_form:
        return load_tokenizer(tokenizer_model(name))
    if name == "mistral":
        return from_gguf(metadata(gguf_tiny()))
    if name == "llama2":
        return from_gguf(metadata(original("checkpoints/gguf_tiny/llama-2-tiny-random.gguf")))
    return from_gguf(llama3_metadata(tokenizer_model(name)))


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    """Vocabularies of 128,000 tokens are not kept for the rest of the run."""
    yield
    made.cache_clear()


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


def forms(*names: str) -> list[Any]:
    """Meta's are marked as extras."""
    return [
        pytest.param(form, marks=extra(f"tokenizers/{form[:6]}/tokenizer.model"))
        if form.startswith(META_TOKENIZERS)
        else form
        for form in names
    ]


@pytest.mark.parametrize(
    "form",
    forms(
        "mistral", "mistral_gguf", "tekken", "tekken_gguf",
        "llama2", "llama2_gguf", "llama3", "llama3_gguf",
    ),
)  # fmt: skip
def test_golden_ids(form: str) -> None:
    tokenizer = made(form)
    for text, ids in golden(form.partition("_")[0]):
        assert tokenizer.encode(text) == ids, repr(text)
        assert tokenizer.decode(ids) == text, repr(text)


def test_smollm2_gives_every_text_back() -> None:
    for text, _ in golden("mistral"):
        ids = made("smollm2").encode(text)
        assert made("smollm2").decode(ids) == text, repr(text)


def test_smollm2_splits_digits() -> None:
    ids = made("smollm2").encode("In 1984")
    assert [made("smollm2").decode([i]) for i in ids] == ["In", " ", "1", "9", "8", "4"]


def test_stories260k() -> None:
    tokenizer = load_tokenizer(data_file("checkpoints/stories260k/tok512.bin"))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
    # The best-scored merges first; an unknown character as its bytes
    assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]
    assert tokenizer.encode("🦙") == [410, *(3 + byte for byte in "🦙".encode())]
    for text in ("Once upon a time, Lily saw 🦙.", "", " two  spaces ", "line\nbreak"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


SIZES = {
    **dict.fromkeys(["mistral", "mistral_gguf", "llama2", "llama2_gguf"], (32000, 1, 2)),
    **dict.fromkeys(["tekken", "tekken_gguf", "llama3", "llama3_gguf"], (128256, 128000, 128001)),
    "smollm2": (49152, 1, 2),
}
FORMS = forms(*SIZES)


@pytest.mark.parametrize("form", FORMS)
def test_control_tokens(form: str) -> None:
    tokenizer = made(form)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == SIZES[form]
    end = next(name for name, i in tokenizer.special.items() if i == tokenizer.eos_id)
    as_text = tokenizer.encode(end)
    assert tokenizer.eos_id not in as_text  # a text can't end a turn
    assert tokenizer.decode(as_text) == end
    assert tokenizer.encode(f"{end}{end}", special=True) == [tokenizer.eos_id] * 2
    ids = tokenizer.encode(f"yes{end}", special=True)
    assert ids == [*tokenizer.encode("yes"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "yes"


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_characters(form: str) -> None:
    tokenizer = made(form)
    ids = tokenizer.encode("🦙")
    assert len(ids) > 1
    assert "\ufffd" in tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("form", FORMS)
def test_errors(form: str) -> None:
    tokenizer = made(form)
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
def test_ranks_take_very_long_runs(character: str) -> None:
    text = f"x{character * 300_000}y"
    assert made("tekken").decode(made("tekken").encode(text)) == text


def test_a_rank_file_has_the_control_tokens_of_llama_3() -> None:
    # github.com/meta-llama/llama-models, models/llama3/prompt_templates
    expected = {"<|start_header_id|>": 128006, "<|end_header_id|>": 128007, "<|eot_id|>": 128009}
    assert expected.items() <= made("tekken").special.items()
    assert sorted(made("tekken").special.values()) == list(range(128000, 128256))


def test_a_gguf_file_is_a_tokenizer_file(tmp_path: Path) -> None:
    path, same = gguf_tiny(), made("mistral_gguf")
    tokenizer = load_tokenizer(path)
    text = "A text, \u00e9t\u00e9."
    assert tokenizer.encode(text) == same.encode(text)
    assert tokenizer.add_bos == same.add_bos
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TokenizerError, match=r"damaged\.gguf: truncated or damaged GGUF file"):
        load_tokenizer(damaged)


@pytest.mark.parametrize("form", FORMS)
def test_lone_surrogates_are_replaced(form: str) -> None:
    tokenizer = made(form)
    assert tokenizer.encode("a \ud83d b \ud83d\ude00") == tokenizer.encode("a \ufffd b \U0001f600")


@pytest.mark.parametrize("form", FORMS)
def test_a_text_that_goes_on(form: str) -> None:
    tokenizer = made(form)
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
