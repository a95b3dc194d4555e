"""Reading of files: JSON lines with the place of each, bounded lines, hashes."""

import gzip
import hashlib
from pathlib import Path

import pytest

from llama_fast._limits import VARIABLE
from llama_fast._reading import (
    checked_int,
    checked_positive,
    file_sha256,
    read_json_lines,
    read_lines,
)


class OwnError(ValueError):
    pass


def test_json_lines_come_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n  \n{"a": "\\u2028"}')
    expected = [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": "\u2028"})]
    assert list(read_json_lines(path)) == expected
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [value for _, value in read_json_lines(packed)] == [value for _, value in expected]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}\n{\n", r"a\.jsonl:2: not JSON"),
        (b"{}\n\n[1]\n", r"a\.jsonl:3: expected a JSON object, got list"),
        (b'{}\n{"a": "\xff"}\n', r"a\.jsonl:2: not UTF-8"),
        (b"{}\n" + b"[" * 101 + b"]" * 101, r"a\.jsonl:2: expected JSON with at most 100 levels"),
        (b"{}\n" + b" " * 40 + b"{}", r"a\.jsonl:2: expected a line of at most 32 bytes.*--limit"),
    ],
)
def test_bad_lines_name_their_place(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "line=32" if b"  " in content else "line=1K")
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    rows = read_json_lines(path, error=OwnError)
    assert next(rows) == (f"{path}:1", {})
    with pytest.raises(OwnError, match=said):
        list(rows)


def test_lines_of_a_truncated_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(b"one\ntwo\n")
    path.write_bytes(whole[:-4])
    with pytest.raises(OwnError, match=r"a\.txt\.gz:\d: damaged gzip file"):
        list(read_lines(path, OwnError))
    path.write_bytes(whole)
    assert list(read_lines(path)) == [b"one\n", b"two\n"]


def test_file_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 11])
def test_checked_int_accepts_ints_in_its_range_alone(value: object) -> None:
    assert checked_int(10, "n", maximum=10) == 10
    with pytest.raises(OwnError, match="n: expected an integer from 1 to 10, got"):
        checked_int(value, "n", maximum=10, error=OwnError)


@pytest.mark.parametrize("value", [True, "1", None, 0, -1.0, float("inf"), float("nan"), 10**400])
def test_checked_positive_accepts_finite_positive_numbers_alone(value: object) -> None:
    assert checked_positive(2, "x") == 2.0
    with pytest.raises(OwnError, match="x: expected a positive number, got"):
        checked_positive(value, "x", error=OwnError)
