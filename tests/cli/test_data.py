"""`llama-fast data`: what it says of real texts, and the shards it writes without some of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from llama_fast.data import TokenShards
from llama_fast.tokenizers import load_tokenizer
from tests.paths import data_file

ADDRESS, TOKEN = "jane.doe@example.com", "hf" + "_" + "aB1" * 11 + "c"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speeches; from number 20 on a question, one half of another, an address, and a token."""
    folder = tmp_path_factory.mktemp("data")
    play = data_file("corpora/tinyshakespeare.txt").read_text()[:30_000].split("\n\n")[:-1]
    with data_file("hub/openai/gsm8k/main/test.jsonl").open() as file:
        whole, _, half = (json.loads(next(file))["question"] for _ in range(3))
    words = half.split(" ")
    half = " ".join(words[: len(words) // 2])
    play[20:20] = [whole, half, f"Write to {ADDRESS}.", f"My token is {TOKEN}, thank you."]
    source = folder / "play.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in play))
    out = folder / "shards"
    assert main(["tokenize", str(source), "--train-bpe", "1000", "--out", str(out)]) == 0
    return out


def check(shards: Path, *options: str) -> int:
    benchmark = str(data_file("hub/openai/gsm8k/main/test.jsonl"))
    return main(["data", "check", str(shards), "--against", benchmark, "--fields", "question",
                 "--min-length", "25", *options])  # fmt: skip


def test_reports(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(shards, "--out", str(tmp_path / "out")) == 0
    (benchmark,) = json.loads((tmp_path / "out/contamination.json").read_text())["benchmarks"]
    questions = benchmark["questions"]
    assert len(questions) == 250
    assert questions[0]["fraction"] == 1 and questions[0]["subsets"] == ["not clean", "dirty"]
    assert 0.4 < questions[2]["fraction"] < 0.6
    assert questions[2]["subsets"] == ["not clean", "not dirty"]
    assert {tuple(q["subsets"]) for q in questions[3:]} == {("clean", "not dirty")}
    assert [q["index"] for q in questions] == list(range(250))
    counts = {"clean": 248, "not clean": 2, "not dirty": 249, "dirty": 1}
    assert benchmark["counts"] == counts
    found = json.loads((tmp_path / "out/secrets.json").read_text())
    assert found["counts"] == {"email": 1, "Hugging Face token": 1}
    assert {(f["document"], f["kind"]) for f in found["findings"]} == {
        (22, "email"),
        (23, "Hugging Face token"),
    }
    said = capsys.readouterr().out
    assert check(shards, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["contamination"]["benchmarks"] == [benchmark] and printed["secrets"] == found
    assert "Text of a question: its fields question" in said
    assert benchmark["texts"] == {"fields": 250}
    assert "248" in said and "Hugging Face token" in said
    for text in (said, *(p.read_text() for p in (tmp_path / "out").iterdir())):
        assert ADDRESS not in text and TOKEN not in text and "aB1" not in text


@pytest.mark.parametrize(
    ("reasons", "dropped"),
    [
        ("contaminated", {20: ["contaminated"], 21: ["contaminated"]}),
        ("emails", {22: ["email"]}),
        ("secrets", {23: ["Hugging Face token"]}),
        (
            "contaminated,secrets,emails",
            {20: ["contaminated"], 21: ["contaminated"], 22: ["email"], 23: ["Hugging Face token"]},
        ),
    ],
)
def test_drop(shards: Path, tmp_path: Path, reasons: str, dropped: dict[int, list[str]]) -> None:
    out = tmp_path / "out"
    assert check(shards, "--out", str(out), "--drop", reasons) == 0
    old, new = TokenShards(shards), TokenShards(out, verify=True)
    kept = [i for i in range(len(old)) if i not in dropped]
    assert [new.read(i)[0].tolist() for i in range(len(new))] == [
        old.read(i)[0].tolist() for i in kept
    ]
    assert new.content_sha256 != old.content_sha256
    log = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert {entry["document"]: entry["found"] for entry in log} == dropped
    assert load_tokenizer(out / "tokenizer").encode("Speak") == load_tokenizer(
        shards / "tokenizer"
    ).encode("Speak")
    assert check(out, "--out", str(tmp_path / "again")) == 0
    (again,) = json.loads((tmp_path / "again/contamination.json").read_text())["benchmarks"]
    assert again["counts"]["not clean"] == (0 if "contaminated" in reasons else 2)


def test_answers_of_chats_are_kept(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "No"}]
             for text in ("Am I ill?", f"Is {ADDRESS} yours?", "Is it late?")]  # fmt: skip
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    old, new = tmp_path / "old", tmp_path / "new"
    assert main(["tokenize", str(source), "--chat-template", "chatml", "--out", str(old)]) == 0
    assert main(["data", "check", str(old), "--out", str(new), "--drop", "emails"]) == 0
    a, b = TokenShards(old), TokenShards(new, verify=True)
    assert b.tokenizer == a.tokenizer and len(b) == 2
    for mine, theirs in zip(b.read(1), a.read(2), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert not b.read(1)[1].all()


def test_another_tokenizer_by_now_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "s"
    text.write_text("to be or not to be")
    assert main(["tokenize", str(text), "--train-bpe", "260", "--out", str(out)]) == 0
    file = out / "tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace("to", "ot"))
    assert main(["data", "check", str(out)]) == 2
    assert "the file has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop", "ghosts", "--out", "o"], "drop: expected some of contaminated, secrets, emai"),
        (["--drop", "emails"], "out: expected a folder"),
        (["--drop", "emails", "--no-secrets", "--out", "o"], "drop: expected no --no-secrets"),
        (["--min-length", "0"], "--min-length: expected at least 1, got 0"),
        (["--fields", "title"], "expected a field 'title', got question, answer"),
        (["--out", "."], "out: exists already: ."),
    ],
)
def test_bad_input_is_one_line(
    shards: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(shards, *options) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert main(["data", "check", str(shards), "--drop", "contaminated", "--out", "o"]) == 2
    assert "drop: expected --against" in capsys.readouterr().err


def test_matches_of_byte_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths in proportion, said; documents are not dropped for matches that any text has."""
    out, benchmark = tmp_path / "s", str(data_file("hub/openai/gsm8k/main/test.jsonl"))
    play = str(data_file("corpora/tinyshakespeare.txt"))
    assert main(["tokenize", play, "--tokenizer", "byte", "--out", str(out)]) == 0
    capsys.readouterr()
    command = ["data", "check", str(out), "--against", benchmark, "--fields", "question"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A match has 44 tokens or more; the first 40 are equal, and 16 may differ." in said
    assert "have 1.0 bytes on average, so this is about 44 bytes" in said
    assert main([*command, "--min-length", "11"]) == 0
    assert "so short that any text has them" in " ".join(capsys.readouterr().out.split())
    new = tmp_path / "new"
    drop = ["--min-length", "11", "--drop", "contaminated", "--out", str(new)]
    assert main([*command, *drop]) == 2 and not new.exists()
    error = capsys.readouterr().err
    assert "--min-length: expected at least 25 with --drop contaminated (tokens of these" in error
    assert error.endswith("got 11\n") and error.count("\n") == 1


def test_says_how_the_texts_were_made(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of a known benchmark as the suite asks them; other rows with all fields, said."""
    known = data_file("hub/openai/gsm8k/main/test.jsonl")
    mixed = tmp_path / "mixed.jsonl"
    with known.open() as file:
        mixed.write_text(next(file) + json.dumps({"q": "Who wrote it?", "a": "She did."}) + "\n")
    command = ["data", "check", str(shards), "--no-secrets", "--against", str(known), str(mixed)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "as the suite asks it, with the right answer, for GSM8K (251 rows)" in said
    assert "mixed.jsonl: 1 row of no known benchmark, whose text is all fields except" in said
    report = json.loads((tmp_path / "out/contamination.json").read_text())
    assert [b["texts"] for b in report["benchmarks"]] == [{"GSM8K": 250}, {"GSM8K": 1, "fields": 1}]
    assert report["fields"] is None
    assert report["benchmarks"][0]["counts"]["dirty"] == 1


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_plant(tmp_path: Path, kind: str) -> None:
    lines = data_file("corpora/tinyshakespeare.txt").read_text()[:20_000].splitlines()
    if kind == "jsonl":
        lines = [json.dumps({"body": line}) for line in lines]
    source = tmp_path / f"play.{kind}"
    source.write_text("\n".join(lines))

    def plant(out: str, *options: str) -> tuple[list[str], dict[str, list[dict[str, object]]]]:
        given = ["data", "plant", str(source), "--out", str(tmp_path / out), "--repeats", "7,0,2",
                 "--digits", "4", "--format", "PIN {digits}!", "--key", "body"]  # fmt: skip
        assert main([*given, *options]) == 0
        text = (tmp_path / out / source.name).read_text()
        return text.splitlines(), json.loads((tmp_path / out / "canaries.json").read_text())

    planted, record = plant("a")
    canaries = record["canaries"]
    assert [c["repeats"] for c in canaries] == [7, 0, 2]
    assert len({c["digits"] for c in canaries}) == 3
    texts = [f"PIN {c['digits']}!" for c in canaries]
    if kind == "jsonl":
        texts = [json.dumps({"body": text}) for text in texts]
    assert [planted.count(text) for text in texts] == [7, 0, 2]
    assert [line for line in planted if line not in texts] == lines
    places = [i for i, line in enumerate(planted) if line in texts]
    assert places[-1] - places[0] > len(lines) / 4  # all over the text
    assert plant("b")[0] == planted
    assert plant("c", "--seed", "1")[1]["canaries"] != canaries


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "secret"], "format: expected one line with {digits} once, got 'secret'"),
        (["--digits", "19"], "digits: expected 1 to 18, got 19"),
        (["--repeats", "1,x"], "--repeats: expected numbers such as 0,1,5, got '1,x'"),
        (["--repeats", "3,-1"], "repeats: expected 1 to 1000000 numbers >= 0, got [3, -1]"),
        (["--seed", "-1"], "seed: expected a number >= 0, got -1"),
    ],
)
def test_bad_canaries_are_one_line(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.txt"
    source.write_text("a\n")
    assert main(["data", "plant", str(source), "--out", str(tmp_path / "o"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()
