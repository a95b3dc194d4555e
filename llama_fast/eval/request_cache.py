"""Answers of a model, on disk: a run that was killed asks only what it had not been told.

An SQLite file in WAL mode: what was committed survives a kill at any moment, and several runs may
use one file at once. A key is a hash of everything the answer follows from.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama_fast.models import LlamaConfig
from llama_fast.tokenizers import Tokenizer

# Raised whenever answers change: older ones are then asked anew.
ENGINE = 3


class CacheError(OSError):
    """Answers can't be kept or read; the message names the file and says why."""


class RequestCache:
    """Answers by key.

    Args:
        path: the file; made, with its folder, if it is not there.

    Raises:
        CacheError: it can't be opened or written, or is no cache.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(self.path, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            # A commit is then one write; a power cut may lose the last ones, a kill none.
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise CacheError(
                f"{self.path}: not to be used as a cache of requests: {error}"
            ) from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """Those of the answers that are there.

        Raises:
            CacheError: the file is damaged or can't be read.
        """
        found: dict[bytes, Any] = {}
        for begin in range(0, len(keys), 500):
            some = keys[begin : begin + 500]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"
            try:
                rows = self._file.execute(query, some).fetchall()
            except sqlite3.Error as error:
                raise CacheError(f"{self.path}: answers can't be read: {error}") from None
            found.update((key, json.loads(answer)) for key, answer in rows)
        return found

    def put(self, answers: Iterable[tuple[bytes, Any]]) -> None:
        """Write answers (whatever JSON has), all or none.

        Raises:
            CacheError: the disk is full, or the file can't be written.
        """
        rows = [(key, json.dumps(answer)) for key, answer in answers]
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise CacheError(
                f"{self.path}: an answer can't be written: {error}; those before it are kept"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
