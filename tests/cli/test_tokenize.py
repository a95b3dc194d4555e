"""`llama-fast tokenize` on real texts and chats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from llama_fast.data import ChatTemplate, DataError, TokenShards
from llama_fast.data.encoding import Encoder
from llama_fast.data.tokenizer import tokenizer_of
from llama_fast.tokenizers import load_tokenizer
from llama_fast.tokenizers.train_bpe import train_bpe
from tests.paths import data_file, tokenizer_model


def test_text_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = data_file("corpora/tinyshakespeare.txt"), tmp_path / "shards"
    assert main(["tokenize", str(source), "--out", str(out), "--separator", "\n\n"]) == 0
    text = source.read_text()
    parts = [part for part in text.split("\n\n") if part.strip()]
    shards = TokenShards(out, verify=True)
    tokenizer = load_tokenizer("byte")
    assert len(shards) == len(parts)
    for document in (0, 1, len(parts) - 1):
        ids = shards.read(document)[0].tolist()
        assert ids[0] == ids[-1] == 256
        assert tokenizer.decode(ids) == parts[document]
    said = capsys.readouterr().out
    assert f"{len(parts):,} documents, {shards.num_tokens:,} tokens" in said
    assert shards.content_sha256 in said


def test_learns_a_tokenizer_and_keeps_it(tmp_path: Path) -> None:
    source, out = data_file("corpora/tinyshakespeare.txt"), tmp_path / "shards"
    assert main(["tokenize", str(source), "--out", str(out), "--train-bpe", "512"]) == 0
    shards = TokenShards(out)
    assert shards.vocab_size == 512 and shards.tokenizer["path"] == "tokenizer"
    tokenizer = load_tokenizer(out / "tokenizer")
    assert tokenizer.decode(shards.read(0)[0].tolist()) == source.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_chats_learn_their_answers(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    source = tmp_path / "chats.jsonl"
    source.write_text(json.dumps({"messages": chat}) + "\n")
    out = tmp_path / "shards"
    assert main(["tokenize", str(source), "--out", str(out), "--chat-template", "chatml"]) == 0
    ids, answer = TokenShards(out).read(0)
    assert load_tokenizer("byte").decode(ids[answer].tolist()) == "Hello<|im_end|>\n"


def test_chats_without_an_answer_are_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "output": text} for text in ("Hello", "Yes")]
    chats = [*rows, {"messages": [{"role": "user", "content": "Hi"}]}]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in chats))
    command = ["tokenize", str(source), "--chat-template", "chatml", "--out", str(tmp_path / "s")]
    with pytest.warns(UserWarning, match="^1 chat of 3 without an answer"):
        assert main(command) == 0


def test_chats_begin_as_the_model_expects_it() -> None:
    """Llama's tokenizers begin each text with a token; once, also where the template has it."""
    tokenizer = load_tokenizer(tokenizer_model("tekken"))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for name in ("plain", "llama3"):
        encoded, answer = Encoder(tokenizer, ChatTemplate(name), True).encode(chat)
        ids = encoded.tolist()
        assert ids.index(128000) == 0 and ids.count(128000) == 1
        assert answer is not None and len(answer) == len(ids) and not answer[0]


def test_a_tokenizer_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Named by its folder too."""
    source, folder = tmp_path / "a.txt", tmp_path / "mine"
    source.write_text("All that glisters is not gold.")
    new = train_bpe([source.read_text()], 257, folder)
    out = tmp_path / "shards"
    assert main(["tokenize", str(source), "--tokenizer", str(folder), "--out", str(out)]) == 0
    assert tokenizer_of(TokenShards(out)).vocab_size == new.vocab_size
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DataError, match="the file has changed"):
        tokenizer_of(TokenShards(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}"], "none.jsonl: expected at least one document, got none"),
        (["no.txt"], "source: no such file or folder: no.txt"),
        (["{chats}"], "--chat-template: expected one for chats, got none"),
        (["{texts}", "--chat-template", "chatml"], "--chat-template: expected chats, got a text"),
        (["{texts}", "--tokenizer", "no.json"], "--tokenizer: no such file or folder: no.json"),
        (["{texts}", "--key", "body"], "texts.jsonl:1: expected a field 'body'"),
        (["{texts}", "--train-bpe", "257", "--chat-template", "chatml"], "expected chats, got"),
        (["{chats}", "--chat-template", "none"], "chats.jsonl:1: --chat-template: expected one"),
        (["{texts}", "{chats}"], "chats.jsonl:1: expected a text, as before, got a chat"),
        (["{texts}", "--workers", "0"], "--workers: expected at least 1, got 0"),
        (["{texts}", "--tokenizer", "byte", "--train-bpe", "300"], "--train-bpe: expected no --to"),
        (["{texts}", "--train-bpe", "100"], "vocab_size: expected at least 257, got 100"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    texts, chats, none = (tmp_path / f"{n}.jsonl" for n in ("texts", "chats", "none"))
    none.write_text("\n")
    texts.write_text('{"text": "a"}\n')
    chats.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    given = [a.format(texts=texts, chats=chats, none=none) for a in arguments]
    assert main(["tokenize", *given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"chats.jsonl", "none.jsonl", "texts.jsonl"}


def test_rows_of_other_data_sets_with_the_tokenizers_own_template(tmp_path: Path) -> None:
    """The answers alone are learned, whatever the fields are called; texts need no template."""
    folder = tmp_path / "mine"
    train_bpe(["All that glisters is not gold."], 257, folder)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"conversations": sharegpt},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"messages": messages},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tokenize", str(source), "--tokenizer", str(folder), "--out"]
    assert main([*command, str(tmp_path / "chats")]) == 0
    shards = TokenShards(tmp_path / "chats")
    assert shards.tokenizer["chat_template"] == template
    tokenizer = tokenizer_of(shards)
    for number in range(4):
        ids, answer = shards.read(number)
        assert tokenizer.decode(ids.tolist()) == "<user>Hi</><assistant>Hello</>"
        assert tokenizer.decode(ids[answer].tolist()) == "Hello</>"
    source.write_text(json.dumps(rows[2]) + "\n")
    assert main([*command, str(tmp_path / "plain"), "--chat-template", "none"]) == 0
    ids, answer = TokenShards(tmp_path / "plain").read(0)
    assert tokenizer.decode(ids.tolist()) == "HiHello"
    assert tokenizer.decode(ids[answer].tolist()) == "Hello"
    (tmp_path / "notes.md").write_text("# Gold\n\nAll that glisters is not gold.")
    command[1] = str(tmp_path / "notes.md")
    assert main([*command, str(tmp_path / "texts")]) == 0
    assert not TokenShards(tmp_path / "texts").has_answers
