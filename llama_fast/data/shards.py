"""Tokenised documents on disk: memory-mapped NumPy arrays and an index with their hashes.

    FOLDER/index.json        tokenizer, counts, sha256 of each file and over all files
    FOLDER/00000.tokens.npy  token ids of all documents, concatenated; uint16 or uint32
    FOLDER/00000.ends.npy    end of each document in the tokens; int64
    FOLDER/00000.answer.npy  for chats only: for each token, whether it is a target; bool

Arrays are read with `allow_pickle=False`. No file outside the folder is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_fast._inside import inside
from llama_fast._reading import checked_int, file_sha256, read_json
from llama_fast._write import partial_name
from llama_fast.data.rows import DataError

INDEX = "index.json"
FORMAT = 1
PARTS = ("tokens", "ends", "answer")


@dataclass(frozen=True)
class ShardEntry:
    """The entry of one shard in the index.

    Attributes:
        name: prefix of the names of its files.
        documents, tokens: number of documents and tokens.
        sha256: hash of each file, by part (:data:`PARTS`).
    """

    name: str
    documents: int
    tokens: int
    sha256: dict[str, str]


class ShardWriter:
    """Writes documents to a new folder of token shards.

    The folder is renamed to its name when it is complete; after an exception it is deleted.

    Args:
        folder: the folder to create; it must not exist.
        vocab_size: vocabulary size of the tokenizer. Ids take two bytes for up to 65,536 tokens,
            else four.
        tokenizer: JSON that identifies the tokenizer; stored in the index.
        shard_tokens: a shard is complete when it has at least this many tokens.
        with_answers: whether each document comes with a mask of the tokens that are targets.

    Attributes:
        partial: the folder while it is being written; renamed to `folder` at the end.

    Raises:
        FileExistsError: `folder` exists.
        ValueError: `shard_tokens` is not positive.

    Example:
        >>> with ShardWriter("shards", vocab_size=257, tokenizer={"kind": "byte"}) as writer:
        ...     writer.add(tokenizer.encode("Hello"))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        vocab_size: int,
        tokenizer: dict[str, Any],
        shard_tokens: int = 1 << 27,
        with_answers: bool = False,
    ) -> None:
        if shard_tokens <= 0:
            raise ValueError(f"shard_tokens: expected a positive number, got {shard_tokens}")
        self.folder = Path(folder)
        if self.folder.exists():
            raise FileExistsError(f"folder: exists already: {self.folder}")
        self.dtype: npt.DTypeLike = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self.vocab_size, self.tokenizer = vocab_size, tokenizer
        self.shard_tokens, self.with_answers = shard_tokens, with_answers
        self.partial = partial_name(self.folder)
        self._shards: list[ShardEntry] = []
        self._clear()

    def __enter__(self) -> ShardWriter:
        self.partial.mkdir(parents=True)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self._finish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _clear(self) -> None:
        self._tokens: list[npt.NDArray[Any]] = []
        self._answers: list[npt.NDArray[np.bool_]] = []
        self._ends: list[int] = []

    def add(self, ids: npt.ArrayLike, answer: npt.ArrayLike | None = None) -> None:
        """Add a document.

        Args:
            ids: its token ids, including those for begin and end.
            answer: for each token whether it is a target; only with `with_answers`.

        Raises:
            ValueError: `ids` is empty or has ids outside the vocabulary; `answer` has another
                length, is missing, or is not expected.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(f"ids: expected at least one, all in [0, {self.vocab_size})")
        if (answer is not None) != self.with_answers:
            raise ValueError(f"answer: expected {'a mask' if self.with_answers else 'None'}")
        if answer is not None:
            mask = np.asarray(answer, dtype=np.bool_)
            if len(mask) != len(tokens):
                raise ValueError(f"answer: expected {len(tokens)} values, got {len(mask)}")
            self._answers.append(mask)
        self._tokens.append(tokens.astype(self.dtype))
        self._ends.append((self._ends[-1] if self._ends else 0) + len(tokens))
        if self._ends[-1] >= self.shard_tokens:
            self._close_shard()

    def _close_shard(self) -> None:
        name = f"{len(self._shards):05}"
        arrays = {
            "tokens": np.concatenate(self._tokens),
            "ends": np.asarray(self._ends, dtype=np.int64),
        }
        if self.with_answers:
            arrays["answer"] = np.concatenate(self._answers)
        hashes = {}
        for part, array in arrays.items():
            path = self.partial / f"{name}.{part}.npy"
            np.save(path, array, allow_pickle=False)
            hashes[part] = file_sha256(path)
        self._shards.append(ShardEntry(name, len(self._ends), self._ends[-1], hashes))
        self._clear()

    def _finish(self) -> None:
        if self._ends:
            self._close_shard()
        if not self._shards:
            raise DataError(f"{self.folder}: expected at least one document, got none")
        index = {
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer,
            "content_sha256": content_hash(self._shards),
            "shards": [dataclasses.asdict(shard) for shard in self._shards],
        }
        (self.partial / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        self.partial.rename(self.folder)


def content_hash(shards: Iterable[ShardEntry]) -> str:
    """SHA-256 over the hashes of all files, in order."""
    lines = (f"{shard.name} {part} {shard.sha256[part]}" for shard in shards for part in PARTS
             if part in shard.sha256)  # fmt: skip
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class TokenShards:
    """The documents in a folder of token shards, read from memory-mapped files on demand.

    Args:
        folder: a folder written by :class:`ShardWriter`.
        verify: whether to compare every file with its hash, which reads all of them.

    Attributes:
        lengths: (documents,) int64, number of tokens in each.
        vocab_size, tokenizer, content_sha256: as in the index.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: the index or a file is missing, damaged, or contradicts the others.
    """

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder: no such folder: {self.folder}")
        try:
            index = read_json(path, error=DataError)
            if index["format"] != FORMAT:
                raise DataError(f"{path}: expected format {FORMAT}, got {index['format']}")
            vocab_size = index["vocab_size"]
            self.vocab_size = checked_int(vocab_size, f"{path}: vocab_size", maximum=1 << 32)
            self.tokenizer: dict[str, Any] = dict(index["tokenizer"])
            self.content_sha256 = str(index["content_sha256"])
            self.shards = [ShardEntry(**entry) for entry in index["shards"]]
            for shard in self.shards:
                if not {"tokens", "ends"} <= set(shard.sha256) <= set(PARTS):
                    raise ValueError(f"shard {shard.name!r} of the parts {list(shard.sha256)}")
        except FileNotFoundError:
            raise DataError(f"{self.folder}: expected token shards, found no {INDEX}") from None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not an index of token shards: {error!r}") from None
        if content_hash(self.shards) != self.content_sha256:
            raise DataError(f"{path}: the hashes do not match content_sha256: the file was changed")
        if verify:
            self.verify()
        self._arrays = [self._open(shard) for shard in self.shards]
        ends = [arrays["ends"] for arrays in self._arrays]
        self.lengths = np.concatenate([np.diff(e, prepend=0) for e in ends])
        self._first = np.cumsum([0] + [len(e) for e in ends])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the path: another process maps the files itself."""
        return _reopen, (type(self), str(self.folder.absolute()), self.content_sha256)

    def _open(self, shard: ShardEntry) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for part in shard.sha256:
            path = self._file(shard, part)
            try:
                arrays[part] = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # NumPy parses the header as Python: any error is possible
                raise DataError(f"{path}: missing or damaged shard: {error}") from None
            if not isinstance(arrays[part], np.ndarray):  # a zip archive of arrays
                raise DataError(f"{path}: damaged shard: expected one array")
        dtype_kinds = {"tokens": "u", "ends": "i", "answer": "b"}
        for part, array in arrays.items():
            if array.ndim != 1 or array.dtype.kind != dtype_kinds[part]:
                raise DataError(
                    f"{self.folder / shard.name}.{part}.npy: damaged shard: expected one "
                    f"dimension and dtype kind {dtype_kinds[part]!r}, got {array.dtype} of shape "
                    f"{array.shape}"
                )
        ends = arrays["ends"]
        is_consistent = (
            len(ends) == shard.documents > 0
            and len(arrays["tokens"]) == shard.tokens == int(ends[-1])
            and bool(np.all(np.diff(ends, prepend=0) > 0))
            and len(arrays.get("answer", arrays["tokens"])) == shard.tokens
        )
        if not is_consistent:
            raise DataError(f"{self.folder / shard.name}.*.npy: damaged shard: sizes do not match")
        return arrays

    def _file(self, shard: ShardEntry, part: str) -> Path:
        return inside(self.folder, f"{shard.name}.{part}.npy", self.folder / INDEX, DataError)

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            DataError: a file is missing or was changed; the message names the first one.
        """
        for shard in self.shards:
            for part, expected in shard.sha256.items():
                path = self._file(shard, part)
                if not path.is_file() or file_sha256(path) != expected:
                    raise DataError(f"{path}: missing or damaged shard: its sha256 has changed")

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all documents."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def has_answers(self) -> bool:
        """Whether documents have masks of the tokens that are targets."""
        return any("answer" in shard.sha256 for shard in self.shards)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.int64]]]:
        """Yield (index of the first document, tokens, ends) of each shard, memory-mapped."""
        for first, arrays in zip(self._first.tolist(), self._arrays, strict=False):
            yield first, arrays["tokens"], arrays["ends"]

    def read(
        self, document: int, start: int = 0, stop: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Read the tokens `start` to `stop` of a document.

        Args:
            document: index of the document.
            start, stop: range of tokens; None reads to the end.

        Returns:
            (tokens, answer): ids, and for each whether it is a target (True if there is no mask).

        Raises:
            IndexError: there is no such document.
            DataError: the file is damaged: an id is outside the vocabulary.
        """
        if not 0 <= document < len(self):
            raise IndexError(f"document: expected one in [0, {len(self)}), got {document}")
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        arrays = self._arrays[shard]
        index = document - int(self._first[shard])
        begin = int(arrays["ends"][index - 1]) if index else 0
        length = int(self.lengths[document])
        stop = length if stop is None else min(stop, length)
        part = slice(begin + start, begin + stop)
        tokens = np.asarray(arrays["tokens"][part], dtype=np.int64)
        if tokens.size and tokens.max() >= self.vocab_size:
            raise DataError(
                f"{self.folder / self.shards[shard].name}.tokens.npy: damaged shard: document "
                f"{document} has the id {tokens.max()}, expected ids below {self.vocab_size}"
            )
        if "answer" not in arrays:
            return tokens, np.ones(len(tokens), dtype=np.bool_)
        return tokens, np.asarray(arrays["answer"][part])


def _reopen(cls: type[TokenShards], folder: str, content_sha256: str) -> TokenShards:
    shards = cls(folder)
    if shards.content_sha256 != content_sha256:
        raise DataError(
            f"{folder}: expected the shards that were pickled, with content_sha256 "
            f"{content_sha256}, got {shards.content_sha256}"
        )
    return shards
