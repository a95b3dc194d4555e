"""Control tokens in texts, against transformers' own tokenizers; and settings that others left."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llama_fast.models.loading import as_tokenizer
from llama_fast.tokenizers import Tokenizer, TokenizerError, from_gguf, load_tokenizer
from llama_fast.tokenizers.bpe import FastTokenizer
from llama_fast.tokenizers.save import as_backend, save_huggingface
from tests.paths import META_TOKENIZERS, TOKENIZERS, extra, tokenizer_model

LETTERS = [*"abG.\nHé", "<", ">", "|", "/", "s", "end", "user"]
TOKENS = {
    "<s>": AddedToken("<s>", special=True),
    "</s>": AddedToken("</s>", special=True, rstrip=True),
    "<|user|>": AddedToken("<|user|>", special=True, lstrip=True, rstrip=True),
    "<|end|>": AddedToken("<|end|>", special=True, normalized=True),
    "<one>": AddedToken("<one>", special=True, single_word=True),
    "<think>": AddedToken("<think>", special=False, normalized=False, rstrip=True),
    "<tool>": AddedToken("<tool>", special=False),
}


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "▁", *LETTERS, "▁a", "▁G", "ab"])}
    merges = [("▁", "a"), ("▁", "G"), ("a", "b")]
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    made.decoder = decoders.Metaspace("▁", scheme, split=False)
    return made


def legacy() -> tokenizers.Tokenizer:
    """Llama 2's tokenizer.json as its authors published it: a space before every piece."""
    made = metaspace("first")
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return made


def byte_level(prefix: bool) -> tokenizers.Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "ab", "Ġa"])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b"), ("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    return made


def lowercase() -> tokenizers.Tokenizer:
    made = byte_level(False)
    made.normalizer = normalizers.Lowercase()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


KINDS = {
    "first": lambda: metaspace("first"),
    "always": lambda: metaspace("always"),
    "never": lambda: metaspace("never"),
    "legacy": legacy,
    "bytes": lambda: byte_level(False),
    "prefix": lambda: byte_level(True),
    "lowercase": lowercase,
}


def with_tokens(kind: str) -> tokenizers.Tokenizer:
    made = KINDS[kind]()
    for token in TOKENS.values():
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    return made


PAIRS = {
    kind: (
        FastTokenizer(with_tokens(kind), None, None),
        PreTrainedTokenizerFast(tokenizer_object=with_tokens(kind)),
    )
    for kind in KINDS
}
PIECES = st.sampled_from([*TOKENS, " ", "  ", "\n", "a", "G", "ab", "é", "🦙", "<", "|>", "H."])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_a_text_with_control_tokens_is_what_transformers_makes_of_it(
    kind: str, pieces: list[str]
) -> None:
    ours, theirs = PAIRS[kind]
    text = "".join(pieces)
    expected = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ours.encode(text, special=True) == expected.input_ids
    assert ours.encode_with_offsets(text) == (expected.input_ids, expected.offset_mapping)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(PIECES, st.booleans()), max_size=12))
def test_names_in_literal_spans_are_text(kind: str, parts: list[tuple[str, bool]]) -> None:
    """Control tokens are the names outside; with all names in one, the ids are a text's."""
    ours, _ = PAIRS[kind]
    text, literal, outside = "", [], []
    for piece, is_literal in parts:
        if is_literal and piece in ours.special:
            literal.append((len(text), len(text) + len(piece)))
        text += piece
    outside = [text[a:b] for a, b in ours._special_spans(text, literal)]
    ids, offsets = ours.encode_with_offsets(text, literal=literal)
    names = {i: name for name, i in ours.special.items()}
    found = [names[i] for i in ids if i in names]
    if not {"<one>", "<|end|>"} & {piece for piece, _ in parts}:
        assert found == outside
    for i, (begin, end) in zip(ids, offsets, strict=True):
        assert 0 <= begin <= end <= len(text)
        if i in names:
            assert text[begin:end].strip().lower() == names[i]
    everything = [(0, len(text))]
    assert ours.encode_with_offsets(text, literal=everything)[0] == ours.encode(text)


JSON_FORMS = [
    "mistral.json",
    "tekken.json",
    *(
        pytest.param(f"{name}.json", marks=extra(f"tokenizers/{name}/tokenizer.model"))
        for name in META_TOKENIZERS
    ),
]


@pytest.mark.parametrize("form", [*TOKENIZERS, "byte", *JSON_FORMS])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_offsets_of_every_kind(form: str, data: st.DataObject) -> None:
    tokenizer = published(form)
    names = st.sampled_from([*list(tokenizer.special)[:3], "é", "🦙", " ", "\n", "it", " 12"])
    text = "".join(data.draw(st.lists(names, max_size=8)))
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text, special=True)
    covered = set()
    for i, (begin, end) in zip(ids, offsets, strict=True):
        covered |= set(range(begin, end))
        said = tokenizer.decode([i])
        if said.strip() and "\ufffd" not in said and i not in tokenizer.special.values():
            assert said.strip() == text[begin:end].strip()
    assert covered == set(range(len(text)))
    everything = tokenizer.encode_with_offsets(text, literal=[(0, len(text))])[0]
    assert everything == tokenizer.encode(text)


KNOWN: dict[str, Tokenizer] = {}


def published(form: str) -> Tokenizer:
    if form not in KNOWN:
        name, _, json_form = form.partition(".")
        found = load_tokenizer("byte" if name == "byte" else tokenizer_model(name))
        KNOWN[form] = (
            FastTokenizer(as_backend(found), found.bos_id, found.eos_id) if json_form else found
        )
    return KNOWN[form]


def test_behind_a_control_token_a_text_goes_on() -> None:
    """transformers 5 puts Metaspace's space before the first piece alone."""
    ours, _ = PAIRS["first"]
    backend = ours.backend
    assert [backend.id_to_token(i) for i in ours.encode("<s>G", special=True)] == ["<s>", "G"]
    assert [backend.id_to_token(i) for i in ours.encode("G<s>G", special=True)] == [
        "▁G", "<s>", "G",
    ]  # fmt: skip


def spoiled() -> tokenizers.Tokenizer:
    """As a training run may leave a tokenizer."""
    made = with_tokens("bytes")
    made.enable_truncation(3)
    made.enable_padding(length=8, pad_id=0, pad_token="!")
    made.model.dropout = 0.5
    return made


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    text = "ab ab ab ab <s> ab ab"
    clean = FastTokenizer(with_tokens("bytes"), None, None)
    made = spoiled()
    made.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="!")
    theirs([text, text], truncation=True, padding=True, max_length=4)
    before = theirs.backend_tokenizer.to_str()
    for ours in (load_tokenizer(tmp_path), as_tokenizer(theirs)):
        for special in (False, True):
            for _ in range(3):
                assert ours.encode(text, special=special) == clean.encode(text, special=special)
        assert ours.encode_with_offsets(text) == clean.encode_with_offsets(text)
        assert ours.decode(ours.encode(text)) == text
        save_huggingface(ours, tmp_path, 4096)
        written = json.loads((tmp_path / "tokenizer.json").read_text())
        assert written["truncation"] is written["padding"] is None
    assert theirs.backend_tokenizer.to_str() == before  # the user's own stays as it was
    assert len(theirs(text, truncation=True, max_length=4).input_ids) == 4


def test_a_tokenizer_of_transformers_is_a_copy() -> None:
    theirs = copy.deepcopy(PAIRS["bytes"][1])
    ours = as_tokenizer(theirs)
    before = ours.encode("ab <new> ab", special=True)
    theirs.add_tokens(["<new>"], special_tokens=True)
    theirs(["ab"], truncation=True, max_length=1)
    assert ours.encode("ab <new> ab", special=True) == before
    assert as_tokenizer(theirs).encode("<new>", special=True) == theirs("<new>").input_ids


@pytest.mark.parametrize("again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_gives_the_same_ids(again: Callable[[Tokenizer], Tokenizer]) -> None:
    """In a worker process too, names of control tokens in a text stay text."""
    for kind in ("bytes", "first"):
        ours = FastTokenizer(with_tokens(kind), None, None)
        for _ in range(2):  # the second time with what the first made
            other = again(ours)
            for text in ("<s> a<|end|> b", "ab"):
                for special in (False, True):
                    assert other.encode(text, special=special) == ours.encode(text, special=special)
                assert other.encode_with_offsets(text, literal=[(0, 3)]) == (
                    ours.encode_with_offsets(text, literal=[(0, 3)])
                )


@pytest.mark.parametrize(
    "single", ["<s>:0 <|user|>:0 $A:0", "<|end|>:0 $A:0", "<s>:0 $A:0", "$A:0"]
)
@pytest.mark.parametrize("bos", ["<s>", None])
def test_what_the_post_processor_puts_before_a_text(
    single: str, bos: str | None, tmp_path: Path
) -> None:
    made = with_tokens("bytes")
    names = ("<s>", "<|user|>", "<|end|>")
    known = [(name, made.token_to_id(name)) for name in names]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos)
    ours = as_tokenizer(theirs)
    for text in ("ab", "", "<one>"):
        assert ours.prepend_bos(ours.encode(text, special=True)) == theirs(text).input_ids
    assert ours.prepend_bos(theirs("ab").input_ids) == theirs("ab").input_ids
    save_huggingface(ours, tmp_path, 4096)
    assert load_tokenizer(tmp_path).begin_ids == ours.begin_ids


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("processor", [True, False])
def test_a_begin_token_is_what_the_post_processor_says(
    flag: bool | None, processor: bool, tmp_path: Path
) -> None:
    made = with_tokens("bytes")
    begin = made.token_to_id("<s>")
    if processor:
        made.post_processor = processors.TemplateProcessing(
            single="<s>:0 $A:0", special_tokens=[("<s>", begin)]
        )
    made.save(str(tmp_path / "tokenizer.json"))
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    if flag is not None:
        fields["add_bos_token"] = flag
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for ours in (load_tokenizer(tmp_path), as_tokenizer(theirs)):
        assert ours.add_bos == (theirs("ab").input_ids[:1] == [begin]) == processor
        assert ours.prepend_bos(ours.encode("ab")) == theirs("ab").input_ids
    for wanted in (True, False):  # a written file says what the tokenizer is asked to do
        ours.add_bos = wanted
        save_huggingface(ours, tmp_path, 4096)
        assert load_tokenizer(tmp_path).add_bos == wanted
        assert (AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids[0] == begin) == wanted


def test_control_tokens_of_the_config(tmp_path: Path) -> None:
    """`tokenizer_config.json` may change flags and name tokens that the vocabulary has already."""
    made = with_tokens("bytes")
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    changed = {"content": "<s>", "lstrip": True, "rstrip": True, "special": True,
               "single_word": False, "normalized": False}  # fmt: skip
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "Ġa",
        "added_tokens_decoder": {str(made.token_to_id("<s>")): changed},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in ("a <s> b", "ab", "xĠa", "Ġa <tool> <one>1"):
        assert ours.encode(text, special=True) == theirs(text).input_ids
    assert (ours.eos_id, ours.eos_token) == (theirs.eos_token_id, "Ġa")
    fields["added_tokens_decoder"] = {"x": changed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: added_tokens_decoder"):
        load_tokenizer(tmp_path)


def test_ids_with_gaps() -> None:
    made = with_tokens("bytes")
    content = json.loads(made.to_str())
    content["model"]["vocab"]["Z"] = 999
    ours = FastTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), None, None)
    assert ours.vocab_size == 1000
    assert ours.decode([999, ours.encode("b")[0], 998]).endswith("b")


def gguf(names: list[str], **more: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", *names],
        "tokenizer.ggml.token_type": [1, 1, *[3] * len(names)],
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }


def test_what_ends_a_turn_is_known_by_its_name() -> None:
    llama3 = load_tokenizer(tokenizer_model("tekken"))  # named and numbered as Llama 3's
    # Meta's `stop_tokens`, and Llama 3.1's generation_config.json
    assert llama3.end_ids == (128001, 128009, 128008)
    assert from_gguf(gguf(["</s>", "<|eot_id|>"])).end_ids == (2, 3)
    assert from_gguf(gguf(["</s>", "<end_of_turn>", "<x>"])).end_ids == (2, 3)
    fields = gguf(["</s>", "<x>", "<|im_end|>"], **{"tokenizer.ggml.eot_token_id": 3})
    assert set(from_gguf(fields).end_ids) == {2, 3, 4}
    # gpt-oss writes <|end|> between its reasoning and its answer.
    assert from_gguf(gguf(["<|return|>", "<|end|>"])).end_ids == (2,)
    assert from_gguf(gguf(["</s>", "<|end|>"])).end_ids == (2, 3)
