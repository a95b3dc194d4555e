from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from llama_fast.eval.harness import HarnessModel, _is_likelihood
from llama_fast.eval.request_cache import CacheError, RequestCache, fingerprint, key_of
from llama_fast.models import LLaMA, LlamaConfig

TABLE = "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"


def test_answers_are_kept(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "deep" / "cache.sqlite")
    keys = [key_of("request", i) for i in range(1200)]
    cache.put((key, [i, "é\n"]) for i, key in enumerate(keys[:1100]))
    cache.close()
    found = RequestCache(tmp_path / "deep" / "cache.sqlite").get(keys)
    assert found == {key: [i, "é\n"] for i, key in enumerate(keys[:1100])}


def test_two_at_once(tmp_path: Path) -> None:
    a, b = RequestCache(tmp_path / "c.sqlite"), RequestCache(tmp_path / "c.sqlite")
    a.put([(b"1", 1)])
    b.put([(b"2", 2)])
    assert a.get([b"1", b"2"]) == b.get([b"1", b"2"]) == {b"1": 1, b"2": 2}


def test_no_cache_file(tmp_path: Path) -> None:
    """It is kept under another name, and a new one begins."""
    file = tmp_path / "c.sqlite"
    for number in (1, 2):
        file.unlink(missing_ok=True)
        file.write_bytes(b"something else, of more than sixteen bytes")
        with pytest.warns(
            UserWarning, match=rf"c\.sqlite: not a request cache .*bad-{number}"
        ) as warned:
            cache = RequestCache(file)
        assert len(warned) == 1
        assert (tmp_path / f"c.sqlite.bad-{number}").read_bytes().startswith(b"something else")
        cache.put([(b"1", 1)])
        assert cache.get([b"1"]) == {b"1": 1}
        cache.close()


def test_a_place_where_nothing_can_be(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot be used as a request cache"):
        RequestCache(tmp_path / ("no" * 200))


@pytest.mark.parametrize("begin", [8192, 150_000])
def test_a_damaged_file(tmp_path: Path, begin: int) -> None:
    """Seen when it is opened, or when the damaged part is read."""
    file = tmp_path / "c.sqlite"
    cache = RequestCache(file)
    keys = [key_of(i) for i in range(2000)]
    cache.put((key, "x" * 100) for key in keys)
    cache.close()
    content = bytearray(file.read_bytes())
    content[begin:] = b"\x55" * (len(content) - begin)
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="database disk image is malformed") as warned:
        cache = RequestCache(file)
        assert len(cache.get(keys)) < len(keys)
    assert len(warned) == 1
    cache.put([(keys[0], "new")])
    assert cache.get(keys) == {keys[0]: "new"}
    cache.close()
    assert (tmp_path / "c.sqlite.bad-1").read_bytes() == content


EVIL = {
    "view": "CREATE VIEW answers AS SELECT x'31' AS key, '\"evil\"' AS answer",
    "trigger": TABLE + "; CREATE TRIGGER t BEFORE INSERT ON answers BEGIN "
    "INSERT INTO answers WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
    "SELECT n, n FROM c; END",
    "index": TABLE + "; CREATE INDEX i ON answers (abs(answer))",
    "check": "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT CHECK (answer = 'x')) "
    "WITHOUT ROWID",
    "columns": "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT, more TEXT) WITHOUT ROWID",
    "other tables": "CREATE TABLE cookies (a, b)",
}


@pytest.mark.parametrize("what", EVIL)
def test_a_file_with_more_in_it(tmp_path: Path, what: str) -> None:
    """A view answers what it likes, a trigger goes on for ever."""
    file = tmp_path / "c.sqlite"
    with closing(sqlite3.connect(file)) as made:
        made.executescript(EVIL[what])
    with pytest.warns(UserWarning, match="expected the table of answers only") as warned:
        cache = RequestCache(file)
    assert len(warned) == 1 and cache.get([b"1"]) == {}
    cache.put([(b"1", "own")])
    assert cache.get([b"1"]) == {b"1": "own"}


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_a_link_is_not_written_through(tmp_path: Path, end: str) -> None:
    private = tmp_path / "private.sqlite"
    with closing(sqlite3.connect(private)) as made:
        made.executescript("CREATE TABLE cookies (a)")
    before = private.read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / f"run/c.sqlite{end}").symlink_to(private)
    with pytest.warns(UserWarning, match=f"c.sqlite{end} is a link"):
        cache = RequestCache(tmp_path / "run/c.sqlite")
    cache.put([(b"1", 1)])
    assert cache.get([b"1"]) == {b"1": 1}
    cache.close()
    assert private.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"private.sqlite", "run"}


def test_rows_that_do_not_read(tmp_path: Path) -> None:
    file = tmp_path / "c.sqlite"
    cache = RequestCache(file)
    cache.put([(b"good", [-1.5, True])])
    rows: list[tuple[bytes, object]] = [
        (b"deep", "[" * 100_000),
        (b"half", '{"a":'),
        (b"bytes", b"[1]"),
        (b"number", 7.5),
        (b"none", None),
        (b"long", '"' + "x" * (1 << 25) + '"'),
        (b"text", '"a text"'),
        (b"pair", '["a", 1]'),
        (b"int", "[1, true]"),
        (b"three", "[0.5, true, 1]"),
    ]
    with closing(sqlite3.connect(file)) as made:
        made.executemany("INSERT INTO answers VALUES (?, ?)", rows)
        made.execute("INSERT INTO answers VALUES (?, CAST(x'22ff22' AS TEXT))", (b"utf",))
        made.commit()
    keys = [b"good", b"utf", *(key for key, _ in rows)]
    with pytest.warns(UserWarning, match="unreadable answers are computed again") as warned:
        assert cache.get(keys, _is_likelihood) == {b"good": [-1.5, True]}
    assert len(warned) == 1


def test_a_model_asks_anew_what_a_strangers_cache_does_not_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug", vocab_size=257)).eval()
    request = [Instance("loglikelihood", {}, ("ab", "cd"), 0, ("t", 0, 1))]
    text = [Instance("generate_until", {}, ("ab", {"max_gen_toks": 4}), 0, ("t", 0, 1))]
    file = tmp_path / "c.sqlite"
    plain = HarnessModel(model, "byte", device="cpu", cache=file)
    expected = plain.loglikelihood(request), plain.generate_until(text)
    assert plain.cache is not None
    plain.cache.close()
    with closing(sqlite3.connect(file)) as made:
        made.execute("UPDATE answers SET answer = ?", ("[" * 100_000,))
        made.commit()
    with pytest.warns(UserWarning, match="computed again"):
        lm = HarnessModel(model, "byte", device="cpu", cache=file)
        assert (lm.loglikelihood(request), lm.generate_until(text)) == expected
    assert lm.cached == 0


FULL = """
import resource, signal, sys
from llama_fast.eval.request_cache import RequestCache
cache = RequestCache(sys.argv[1])
cache.put([(b"first", "kept")])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    for i in range(1000):
        cache.put([(b"%d" % i, "x" * 10_000)])
except OSError as error:
    print(error)
"""


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    """A limit on the file's size fails the write as a full disk does."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    file = tmp_path / "c.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True
    )
    assert "an answer cannot be written" in done.stdout and "are kept" in done.stdout
    found = RequestCache(file).get([b"first", b"0"])
    assert found == {b"first": "kept", b"0": "x" * 10_000}


def test_a_fingerprint_is_of_every_bit() -> None:
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug"))
    before = fingerprint(model)
    assert fingerprint(model) == before
    assert fingerprint(model.to(torch.bfloat16)) != before
    other = LLaMA(LlamaConfig.preset("debug"))
    other.load_state_dict(model.to(torch.float32).state_dict())
    same = fingerprint(other)
    with torch.no_grad():
        other.norm.weight[-1] += 1e-7
    assert fingerprint(other) != same


def test_keys_tell_apart() -> None:
    keys = {key_of("a", [1, 2], [3]), key_of("a", [1], [2, 3]), key_of("a", [1, 2, 3], [])}
    assert len(keys) == 3 and key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
