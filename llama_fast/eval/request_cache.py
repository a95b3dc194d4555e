"""Answers of a model, on disk: a run that was killed asks only what it had not been told.

An SQLite file in WAL mode: what was committed survives a kill at any moment, and several runs may
use one file at once. A key is a hash of everything the answer follows from.
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

# Raised whenever answers change: older ones are then asked anew.
ENGINE = 3


_TABLE = "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"
_LONGEST = 1 << 24  # bytes of an answer: no text of a model is as long
_DAMAGE = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB


class CacheError(OSError):
    """Answers can't be kept or read; the message names the file and says why."""


class _ForeignError(Exception):
    """A file that is no cache, or more than one."""


class RequestCache:
    """Answers by key.

    Of a file that somebody else made, this much is trusted: an answer that has the right key and
    type is believed, whatever it says. A file with views, triggers, other tables or damage is set
    aside, with a warning, and so is a link; a row that does not read is asked anew.

    Args:
        path: the file; made, with its folder, if it is not there.

    Raises:
        CacheError: it can't be opened, written or set aside.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._warned = False
        try:
            try:
                self._open()
            except _ForeignError as error:
                self._set_aside(str(error))
                self._open()
        except (sqlite3.Error, OSError, _ForeignError) as error:
            raise CacheError(
                f"{self.path}: not to be used as a cache of requests: {error}"
            ) from None

    def _open(self) -> None:
        for path in (self.path, *self._beside()):
            if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                raise _ForeignError(f"{path.name} is a link or no regular file")
        file = sqlite3.connect(self.path, isolation_level=None)
        file.text_factory = bytes  # what is no UTF-8 is no reason to end
        try:
            file.execute("PRAGMA trusted_schema = OFF")  # before anything of the file's is run
            _check_schema(file)
            file.execute("PRAGMA journal_mode = WAL")
            # A commit is then one write; a power cut may lose the last ones, a kill none.
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
        """Files of SQLite's own that belong to the cache."""
        return [self.path.with_name(self.path.name + end) for end in ("-wal", "-shm", "-journal")]

    def _set_aside(self, reason: str) -> None:
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
            f"{self.path}: not the cache of requests that it should be ({reason}): set aside as "
            f"{aside.name}; everything is asked anew",
            stacklevel=4,
        )

    def get(
        self, keys: Sequence[bytes], valid: Callable[[Any], bool] = lambda answer: True
    ) -> dict[bytes, Any]:
        """Those of the answers that are there.

        Args:
            keys: of the answers.
            valid: whether an answer is of the kind that is asked for; others count as not there.

        Raises:
            CacheError: the file can't be read.
        """
        found: dict[bytes, Any] = {}
        for begin in range(0, len(keys), 500):
            some = keys[begin : begin + 500]
            marks = ",".join("?" * len(some))
            query = (
                f"SELECT key, answer FROM answers WHERE key IN ({marks}) "
                f"AND typeof(answer) = 'text' AND length(CAST(answer AS BLOB)) <= {_LONGEST}"
            )
            try:
                rows = self._file.execute(query, some).fetchall()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise CacheError(f"{self.path}: answers can't be read: {error}") from None
                self._renew(error)
                return found
            for key, text in rows:
                try:
                    answer = json.loads(text)
                except (ValueError, RecursionError):
                    self._warn()
                    continue
                if valid(answer):
                    found[key] = answer
                else:
                    self._warn()
        return found

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.path}: answers that do not read are asked anew", stacklevel=4)

    def _renew(self, error: sqlite3.Error) -> None:
        self._file.close()
        try:
            self._set_aside(str(error))
            self._open()
        except (sqlite3.Error, OSError, _ForeignError) as problem:
            raise CacheError(f"{self.path}: answers can't be read: {problem}") from None

    def put(self, answers: Iterable[tuple[bytes, Any]]) -> None:
        """Write answers (whatever JSON has), all or none.

        Raises:
            CacheError: the disk is full, or the file can't be written.
        """
        rows = [(key, json.dumps(answer)) for key, answer in answers]
        try:
            self._write(rows)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise self._unwritten(error) from None
            self._renew(error)
            try:
                self._write(rows)
            except sqlite3.Error as again:
                raise self._unwritten(again) from None

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
            f"{self.path}: an answer can't be written: {error}; those before it are kept"
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_schema(file: sqlite3.Connection) -> None:
    """Raise :class:`_ForeignError` unless the file is empty or has our table and nothing else."""
    rows = file.execute("SELECT type, name, sql FROM sqlite_master LIMIT 3").fetchall()
    known = [(b"table", b"answers", _TABLE.encode())]
    if rows and rows != known:
        kinds = ", ".join(f"{bytes(kind).decode(errors='replace')}" for kind, _, _ in rows)
        raise _ForeignError(f"expected the table of answers alone, got {kinds} of another form")


def _is_damage(error: BaseException) -> bool:
    """Whether an error says that the file is damaged or no database, not that it is in use."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return (code & 0xFF) in _DAMAGE
    # Python 3.10 has no codes; OperationalError (busy, full, read-only) is a class of its own.
    return type(error) is sqlite3.DatabaseError


def fingerprint(model: nn.Module) -> str:
    """sha256 of every weight and buffer of a model: names, shapes, dtypes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def settings_of(model: nn.Module) -> str:
    """What a model computes with beside its weights: its configuration, hashed.

    Two models of the same weights differ in it where one was read with another base of its rotary
    angles, say. Names of folders and versions of packages are left out.
    """
    config: Any = model.config
    fields = asdict(config) if isinstance(config, LlamaConfig) else config.to_dict()
    told = {k: v for k, v in fields.items() if k not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """What becomes of a model's tokens: the text of each, what is no text, and what ends one."""
    text = tokenizer.decode(range(tokenizer.vocab_size))
    told = [text, tokenizer.special, tokenizer.end_ids]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def key_of(*parts: Any) -> bytes:
    """A key of anything that JSON has."""
    content = json.dumps([ENGINE, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).digest()
