"""A cache of a model's answers on disk, with which an interrupted run can continue.

It is an SQLite file in WAL mode: committed answers survive a kill at any moment, and several runs
may share a file. A key is a hash of everything on which the answer depends.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama_fast.models import LlamaConfig
from llama_fast.tokenizers import Tokenizer

# Increased whenever answers change, which invalidates older ones.
ENGINE = 3


_TABLE = "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"
_MAX_ANSWER_BYTES = 1 << 24  # far beyond any generated text
_DAMAGE = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB


class CacheError(OSError):
    """Answers cannot be stored or read; the message gives the file and the reason."""


class _ForeignError(Exception):
    """The file is not a cache, or holds more than one."""


class RequestCache:
    """A mapping from keys to answers, stored in a file.

    An untrusted file cannot run code, but can contain wrong answers: any answer with the right key
    and type is used. A link, or a file that is damaged or has views, triggers or other tables, is
    moved aside with a warning. The answer of an unreadable row is computed again.

    Args:
        path: the file; created, with its folder, if missing.

    Raises:
        CacheError: the file cannot be opened, written or moved aside.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._warned = False
        try:
            try:
                self._open()
            except _ForeignError as error:
                self._move_aside(str(error))
                self._open()
        except (sqlite3.Error, OSError, _ForeignError) as error:
            raise CacheError(f"{self.path}: cannot be used as a request cache: {error}") from None

    def _open(self) -> None:
        for path in (self.path, *self._beside()):
            if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                raise _ForeignError(f"{path.name} is a link or not a regular file")
        file = sqlite3.connect(self.path, isolation_level=None)
        file.text_factory = bytes  # text that is not UTF-8 must not raise
        try:
            file.execute("PRAGMA trusted_schema = OFF")  # before any SQL of the file can run
            _check_schema(file)
            file.execute("PRAGMA journal_mode = WAL")
            # Each commit is then one write. A power failure may lose the last ones, a kill loses
            # none.
            file.execute("PRAGMA synchronous = NORMAL")
            file.execute(_TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
            file.execute("SELECT 1 FROM answers LIMIT 1").fetchall()
        except BaseException as error:
            file.close()
            if _is_damage(error):
                raise _ForeignError(str(error)) from None
            raise
        self._file = file

    def _beside(self) -> list[Path]:
        """The auxiliary files of SQLite in the folder of the cache."""
        return [self.path.with_name(self.path.name + end) for end in ("-wal", "-shm", "-journal")]

    def _move_aside(self, reason: str) -> None:
        number = 1
        while os.path.lexists(self.path.with_name(f"{self.path.name}.bad-{number}")):
            number += 1
        aside = self.path.with_name(f"{self.path.name}.bad-{number}")
        if os.path.lexists(self.path):
            os.rename(self.path, aside)
        for path in self._beside():
            if os.path.lexists(path):
                os.rename(path, aside.with_name(path.name.replace(self.path.name, aside.name)))
        warnings.warn(
            f"{self.path}: not a request cache ({reason}); moved to {aside.name}, and all requests "
            "are computed again",
            stacklevel=4,
        )

    def get(
        self, keys: Sequence[bytes], valid: Callable[[Any], bool] = lambda answer: True
    ) -> dict[bytes, Any]:
        """The stored answers among `keys`.

        Args:
            keys: keys of the answers.
            valid: whether an answer has the expected form; others are ignored.

        Raises:
            CacheError: the file cannot be read.
        """
        answers: dict[bytes, Any] = {}
        for begin in range(0, len(keys), 500):
            chunk = keys[begin : begin + 500]
            marks = ",".join("?" * len(chunk))
            query = (
                f"SELECT key, answer FROM answers WHERE key IN ({marks}) "
                "AND typeof(answer) = 'text' "
                f"AND length(CAST(answer AS BLOB)) <= {_MAX_ANSWER_BYTES}"
            )
            try:
                rows = self._file.execute(query, chunk).fetchall()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise CacheError(f"{self.path}: answers cannot be read: {error}") from None
                self._replace(error)
                return answers
            for key, text in rows:
                try:
                    answer = json.loads(text)
                except (ValueError, RecursionError):
                    self._warn()
                    continue
                if valid(answer):
                    answers[key] = answer
                else:
                    self._warn()
        return answers

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.path}: unreadable answers are computed again", stacklevel=4)

    def _replace(self, error: sqlite3.Error) -> None:
        self._file.close()
        try:
            self._move_aside(str(error))
            self._open()
        except (sqlite3.Error, OSError, _ForeignError) as problem:
            raise CacheError(f"{self.path}: answers cannot be read: {problem}") from None

    def put(self, answers: Iterable[tuple[bytes, Any]]) -> None:
        """Store answers (JSON values): either all or none.

        Raises:
            CacheError: the disk is full, or the file cannot be written.
        """
        rows = [(key, json.dumps(answer)) for key, answer in answers]
        try:
            self._write(rows)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise self._unwritten(error) from None
            self._replace(error)
            try:
                self._write(rows)
            except sqlite3.Error as second_error:
                raise self._unwritten(second_error) from None

    def _write(self, rows: list[tuple[bytes, str]]) -> None:
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.Error:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise

    def _unwritten(self, error: sqlite3.Error) -> CacheError:
        return CacheError(
            f"{self.path}: an answer cannot be written: {error}; earlier ones are kept"
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_schema(file: sqlite3.Connection) -> None:
    """Raise :class:`_ForeignError` unless the file is empty or has exactly our table."""
    rows = file.execute("SELECT type, name, sql FROM sqlite_master LIMIT 3").fetchall()
    known = [(b"table", b"answers", _TABLE.encode())]
    if rows and rows != known:
        types = ", ".join(bytes(type_).decode(errors="replace") for type_, _, _ in rows)
        raise _ForeignError(f"expected the table of answers only, got {types} of another form")


def _is_damage(error: BaseException) -> bool:
    """Whether an error means that the file is damaged or not a database, rather than in use."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return (code & 0xFF) in _DAMAGE
    # Python 3.10 has no codes, but a separate class OperationalError (busy, full, read-only).
    return type(error) is sqlite3.DatabaseError


def fingerprint(model: nn.Module) -> str:
    """sha256 of every weight and buffer of a model: names, shapes, dtypes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def settings_of(model: nn.Module) -> str:
    """sha256 of a model's configuration, on which its results depend besides the weights.

    It changes, for example, with the base of the rotary angles. Folder names and package versions
    are not part of it.
    """
    config: Any = model.config
    fields = asdict(config) if isinstance(config, LlamaConfig) else config.to_dict()
    settings = {
        k: v for k, v in fields.items() if k not in ("_name_or_path", "transformers_version")
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """sha256 of a tokenizer's vocabulary: text of all tokens, special tokens, end tokens."""
    text = tokenizer.decode(range(tokenizer.vocab_size))
    vocabulary = [text, tokenizer.special, tokenizer.end_ids]
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()


def key_of(*parts: Any) -> bytes:
    """The key for JSON values."""
    content = json.dumps([ENGINE, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).digest()
