"""Documents as tokens: what is trained on, and the same tokens from any number of processes."""

from __future__ import annotations

import itertools
import json

import pytest

from llama_fast.data import ChatTemplate, DataError, encoding
from llama_fast.data.encoding import Encoder, encode_all
from llama_fast.data.rows import Messages, PromptCompletion
from llama_fast.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from tests.paths import data_file, tokenizer_model

QUESTION = {"role": "user", "content": "How far is the moon?"}
ANSWER = {"role": "assistant", "content": "384,400 km."}
MORE: Messages = [QUESTION, ANSWER, {"role": "user", "content": "And the sun?"}]
LAST = {"role": "assistant", "content": "8 minutes."}


def learned(encoder: Encoder, document: PromptCompletion | Messages) -> tuple[str, str]:
    """The whole text of a document, and that of its targets."""
    ids, answer = encoder.encode(document)
    assert answer is not None and len(answer) == len(ids)
    tokenizer = encoder.tokenizer
    return tokenizer.decode(ids.tolist()), tokenizer.decode(ids[answer].tolist())


def test_a_prompt_without_a_template_is_continued_as_it_is() -> None:
    encoder = Encoder(ByteTokenizer(), None, True)
    assert learned(encoder, PromptCompletion("One, two,", " three")) == (
        "One, two, three",
        " three",
    )
    ids, answer = encoder.encode(PromptCompletion("a", "b"))
    assert ids.tolist() == [256, 97, 98, 256] and answer is not None
    assert answer.tolist() == [False, False, True, True]  # the end is learned, too


def test_a_prompt_of_a_sentencepiece_model_has_the_tokens_of_generation() -> None:
    """The completion continues the prompt: SentencePiece adds no space between them."""
    tokenizer = load_tokenizer(tokenizer_model("llama2"))
    whole, target = learned(Encoder(tokenizer, None, True), PromptCompletion("One, two,", " three"))
    assert (whole, target.strip()) == ("One, two, three", "three")
    ids = Encoder(tokenizer, None, True).encode(PromptCompletion("One, two,", " three")).ids
    prompt = tokenizer.encode_prompt("One, two,")
    assert ids[: len(prompt)].tolist() == prompt and ids[-1] == tokenizer.eos_id


def test_a_prompt_with_a_template_is_a_chat() -> None:
    encoder = Encoder(ByteTokenizer(), ChatTemplate("plain"), True)
    pair = learned(encoder, PromptCompletion("Hi", "Hello"))
    assert pair == ("user: Hi\nassistant: Hello\n", " Hello\n")


def test_earlier_answers_in_a_prompt_are_no_targets() -> None:
    encoder = Encoder(ByteTokenizer(), ChatTemplate("chatml"), True)
    whole, target = learned(encoder, PromptCompletion(MORE, [LAST]))
    assert "384,400 km." in whole and target == "8 minutes.<|im_end|>\n"
    assert learned(encoder, [*MORE, LAST])[0] == whole
    assert "384,400 km." in learned(encoder, [*MORE, LAST])[1]


def test_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="expected chats, got a text"):
        Encoder(ByteTokenizer(), ChatTemplate("plain"), True).encode("a")
    with pytest.raises(ValueError, match="expected a text, as before, got a chat"):
        Encoder(ByteTokenizer(), None, False).encode([QUESTION])
    with pytest.raises(ValueError, match="--chat-template: expected one for chats"):
        Encoder(ByteTokenizer(), None, True).encode([QUESTION, ANSWER])
    changed = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="renders a prompt alike"):
        Encoder(ByteTokenizer(), ChatTemplate(changed), True).encode(
            PromptCompletion([QUESTION], [ANSWER])
        )


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes from the first 10,000 characters on."""
    monkeypatch.setattr(encoding, "BATCH", 1000)
    monkeypatch.setattr(encoding, "ALONE", 10_000)


def placed(tokenizer_name: str) -> tuple[Tokenizer, list[tuple[str, str]]]:
    play = data_file("corpora/tinyshakespeare.txt").read_text()[:100_000]
    speeches = [s for s in play.split("\n\n") if s.strip()]
    return load_tokenizer(tokenizer_name), [(f"p:{n}", s) for n, s in enumerate(speeches)]


def test_any_number_of_processes_gives_the_same_tokens(small_batches: None) -> None:
    tokenizer, documents = placed("byte")
    encoder = Encoder(tokenizer, None, False)
    alone = [ids.tolist() for ids, _ in encode_all(documents, encoder)]
    assert len(alone) == len(documents)
    for workers in (2, 3):
        together = [ids.tolist() for ids, _ in encode_all(documents, encoder, workers)]
        assert together == alone


def test_chats_in_several_processes(small_batches: None) -> None:
    with data_file("hub/openai/gsm8k/main/test.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    chats = [
        [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]
        for r in itertools.islice(itertools.cycle(rows), 300)
    ]
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    encoder = Encoder(ByteTokenizer(), template, True)
    documents = [(f"q:{number}", chat) for number, chat in enumerate(chats)]
    for number, (ids, answer) in enumerate(encode_all(documents, encoder, 2)):
        if number % 50 == 0:
            expected = encoder.encode(chats[number])
            assert ids.tolist() == expected.ids.tolist() and answer is not None
            assert answer.tolist() == expected.answer.tolist()  # type: ignore[union-attr]
    assert number == len(chats) - 1


@pytest.mark.parametrize("at", [0, -1])
def test_an_error_names_the_place(at: int, small_batches: None) -> None:
    """In this process and in another one."""
    tokenizer, documents = placed("byte")
    broken = [*documents]
    broken[at] = ("file.jsonl:7", [QUESTION])  # type: ignore[call-overload]
    with pytest.raises(DataError, match=r"^file.jsonl:7: expected a text, as before, got a chat$"):
        list(encode_all(broken, Encoder(tokenizer, None, False), 2))


def test_it_can_be_left_early(small_batches: None) -> None:
    tokenizer, documents = placed("byte")
    results = encode_all(documents, Encoder(tokenizer, None, False), 2)
    list(itertools.islice(results, len(documents) - 3))
    results.close()  # type: ignore[attr-defined]
