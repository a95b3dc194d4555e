"""Documents out of every kind of source, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llama_fast.data import DataError, read_documents
from tests.paths import data_file, extra, original

ROWS = [{"text": "one"}, {"text": "zwei\n"}, {"text": "три"}]
TEXTS = [row["text"] for row in ROWS]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def json_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    import datasets
    from pyarrow import Table, parquet

    lines = json_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("one<|e|>zwei\n<|e|>три<|e|>\n", encoding="utf-8")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(
        str(tmp_path / "splits")
    )
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt", "saved", "splits"):
        assert list(read_documents(tmp_path / name, separator="<|e|>")) == TEXTS, name


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("2.txt", "1.txt", "sub/0.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("not data")
    assert list(read_documents(tmp_path)) == ["1.txt", "2.txt", "sub/0.txt"]


ORIGINAL = [False, pytest.param(True, marks=extra("corpora/dickens.txt.gz"))]


@pytest.mark.parametrize("whole", ORIGINAL)
def test_real_files(whole: bool) -> None:
    get = original if whole else data_file
    dickens, questions = get("corpora/dickens.txt.gz"), get("hub/openai/gsm8k/main/train.jsonl")
    start, size, count = (0, 10_192_446, 7473) if whole else (100_000, 300_000, 100)
    with pytest.raises(DataError, match=f"utf-8, got an invalid byte at {166_668 - start}"):
        list(read_documents(dickens))
    (text,) = read_documents(dickens, encoding="latin-1")
    assert isinstance(text, str) and len(text) == size
    assert sum(1 for _ in read_documents(questions, key="question")) == count


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes("\ufeffone\ufeff two".encode(encoding))
    assert list(read_documents(path, encoding=encoding)) == ["one\ufeff two"]


def test_chats(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"messages": CHAT}])
    assert list(read_documents(path)) == [CHAT]


# A whole header, and then no deflate.
DAMAGED = gzip.compress(b"abc" * 999, mtime=0)[:10] + b"\xff" * 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl:2: expected a JSON object"),
        ("a.jsonl", b'{"words": "a"}\n', "a.jsonl:1: expected a field 'text', or .*got words"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: expected a string or a list"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "a.jsonl:1: expected message 0"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not UTF-8"),
        ("a.txt", b"abc\xff", "a.txt: expected utf-8, got an invalid byte at 3"),
        ("a.txt.gz", gzip.compress(b"abc" * 999, mtime=0)[:-9], "a.txt.gz: damaged gzip"),
        ("a.txt.gz", DAMAGED, "a.txt.gz: damaged gzip"),
        ("a.jsonl.gz", DAMAGED, "a.jsonl.gz:1: damaged gzip"),
        ("a.parquet", b"PAR1 no", "a.parquet: not a Parquet file"),
        ("a.csv", b"a,b", "a.csv: expected one of .txt, .md, .jsonl, .parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source: no such file"):
        list(read_documents(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="found none"):
        list(read_documents(tmp_path))
    with pytest.raises(DataError, match=r"expected hf:NAME"):
        list(read_documents("hf:a:b:c:d"))
