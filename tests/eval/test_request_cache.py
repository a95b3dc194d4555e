from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama_fast.eval.request_cache import RequestCache, fingerprint, key_of
from llama_fast.models import LLaMA, LlamaConfig


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
    file = tmp_path / "c.sqlite"
    file.write_bytes(b"something else, of more than sixteen bytes")
    with pytest.raises(OSError, match=r"c\.sqlite: not to be used as a cache of requests"):
        RequestCache(file)


def test_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "c.sqlite"
    cache = RequestCache(file)
    keys = [key_of(i) for i in range(2000)]
    cache.put((key, "x" * 100) for key in keys)
    cache.close()
    content = bytearray(file.read_bytes())
    content[8192:] = b"\x55" * (len(content) - 8192)
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"c\.sqlite: answers can't be read: database disk image"):
        RequestCache(file).get(keys)


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
    assert "an answer can't be written" in done.stdout and "are kept" in done.stdout
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
