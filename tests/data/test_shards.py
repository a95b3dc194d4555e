"""Shards come back as they were written; damage is named; nothing half-written stays."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_fast.data import DataError, ShardWriter, TokenShards

DOCUMENTS = [[1, 2, 3], [4], list(range(50)), [65535, 0]]


def write(folder: Path, documents: list[list[int]] = DOCUMENTS, **options: object) -> TokenShards:
    settings = {"vocab_size": 1 << 16, "tokenizer": {"path": "byte"}, "shard_tokens": 40, **options}
    with ShardWriter(folder, **settings) as writer:  # type: ignore[arg-type]
        for document in documents:
            writer.add(document)
    return TokenShards(folder, verify=True)


@settings(max_examples=25)
@given(
    documents=st.lists(st.lists(st.integers(0, 99_999), min_size=1), min_size=1),
    shard_tokens=st.integers(1, 300),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("a") / "shards"
    shards = write(folder, documents, vocab_size=100_000, shard_tokens=shard_tokens)
    assert [shards.read(i)[0].tolist() for i in range(len(shards))] == documents
    assert shards.lengths.tolist() == [len(d) for d in documents]
    assert shards.num_tokens == sum(map(len, documents))


def test_parts_and_masks(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", vocab_size=9, tokenizer={}, with_answers=True) as writer:
        writer.add([1, 2, 3, 4], [False, False, True, True])
    tokens, answer = TokenShards(tmp_path / "s").read(0, 1, 3)
    assert tokens.tolist() == [2, 3] and answer.tolist() == [False, True]


def test_a_pickle_is_the_place_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker that is not forked would be sent the whole corpus."""
    monkeypatch.chdir(tmp_path)
    shards = write(Path("s"), [list(range(1, 50_000))])
    pickled = pickle.dumps(shards)
    assert len(pickled) < 1000
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(pickled)
    assert again.content_sha256 == shards.content_sha256
    assert again.read(0)[0].tolist() == shards.read(0)[0].tolist()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").rename(tmp_path / "moved")
    write(Path("s"))
    with pytest.raises(DataError, match="expected the shards that were pickled"):
        pickle.loads(pickled)


def test_small_vocabularies_take_two_bytes(tmp_path: Path) -> None:
    write(tmp_path / "two")
    write(tmp_path / "four", vocab_size=(1 << 16) + 1)
    sizes = [np.load(tmp_path / name / "00000.tokens.npy").itemsize for name in ("two", "four")]
    assert sizes == [2, 4]


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    one, same = write(tmp_path / "a"), write(tmp_path / "b")
    other = write(tmp_path / "c", [[1, 2, 4], *DOCUMENTS[1:]])
    assert one.content_sha256 == same.content_sha256 != other.content_sha256


@pytest.mark.parametrize("part", ["tokens", "ends"])
def test_one_changed_byte_is_found(tmp_path: Path, part: str) -> None:
    write(tmp_path / "s")
    path = tmp_path / "s" / f"00001.{part}.npy"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"00001.*{part}.npy: missing or damaged|do not match"):
        TokenShards(tmp_path / "s", verify=True)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder)
    (folder / "00000.tokens.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"00000.tokens.npy: missing or damaged"):
        TokenShards(folder)
    (folder / "00000.tokens.npy").unlink()
    with pytest.raises(DataError, match=r"00000.tokens.npy: missing or damaged"):
        TokenShards(folder)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["sha256"]["tokens"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="hashes do not match"):
        TokenShards(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TokenShards(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"found no index.json"):
        TokenShards(folder)
    with pytest.raises(FileNotFoundError, match="folder: no such folder"):
        TokenShards(tmp_path / "no")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder)
    np.save(folder / "00000.tokens.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"00000.tokens.npy: missing or damaged"):
        TokenShards(folder)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(tmp_path / "s", vocab_size=9, tokenizer={}, shard_tokens=1) as writer,
    ):
        writer.add([1])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        ShardWriter(tmp_path, vocab_size=9, tokenizer={})
    with pytest.raises(ValueError, match="shard_tokens: expected a positive"):
        ShardWriter(tmp_path / "s", vocab_size=9, tokenizer={}, shard_tokens=0)
    with pytest.raises(ValueError, match=r"ids: expected at least one, all in \[0, 9\)"):
        write(tmp_path / "s", [[9]], vocab_size=9)
    with pytest.raises(DataError, match="expected at least one document"):
        write(tmp_path / "s", [])
    with pytest.raises(IndexError, match="document: expected one in"):
        write(tmp_path / "s").read(4)
