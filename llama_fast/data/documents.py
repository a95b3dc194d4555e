"""Reads documents from text files, JSON Lines, Parquet and Hugging Face datasets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_fast._extras import lacking
from llama_fast._inside import inside
from llama_fast._limits import limit, raise_it
from llama_fast._reading import (
    DAMAGED_GZIP,
    open_binary,
    read_at_most,
    read_json,
    read_json_lines,
)
from llama_fast.data.rows import DataError, Document, document_of

HUB = "hf:"  # prefix of the name of a dataset on the hub
TEXTS = (".txt", ".md")
SUFFIXES = (*TEXTS, ".jsonl", ".parquet")


def read_documents(
    source: str | os.PathLike[str],
    *,
    key: str = "text",
    separator: str | None = None,
    encoding: str = "utf-8",
    follow_links: bool = False,
) -> Iterator[Document]:
    """Yield the documents of a file, a folder or a dataset, always in the same order.

    Args:
        source: a ``.txt``, ``.md`` or ``.jsonl`` file (or one of these compressed as ``.gz``), a
            ``.parquet`` file, a folder of such files (read in alphabetical order, README.md
            left out), a folder that
            ``datasets.save_to_disk`` wrote, or ``hf:NAME``, ``hf:NAME:CONFIG`` or
            ``hf:NAME:CONFIG:SPLIT`` (default: the default configuration, split ``train``).
        key: field of a row that holds the document: a string, or a list of chat messages. A row
            without this field may have one of the forms in :mod:`llama_fast.data.rows`.
        separator: string between the documents of a text file, such as ``<|endoftext|>``; None
            makes each file one document. Empty documents are skipped.
        encoding: encoding of text files, such as ``latin-1``. A byte order mark at the beginning
            is left out.
        follow_links: whether to follow symbolic links that lead out of the folder. By default they
            are an error, because a folder from a stranger could link to private files.

    Yields:
        A string, the list of messages of a chat, or a
        :class:`~llama_fast.data.rows.PromptCompletion`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        DataError: a file has another suffix, a line is not JSON, a row lacks the field, or a link
            leads out of the folder.
    """
    placed = read_placed_documents(
        source, key=key, separator=separator, encoding=encoding, follow_links=follow_links
    )
    for _, document in placed:
        yield document


def read_placed_documents(
    source: str | os.PathLike[str],
    *,
    key: str = "text",
    separator: str | None = None,
    encoding: str = "utf-8",
    follow_links: bool = False,
) -> Iterator[tuple[str, Document]]:
    """Yield the place of each document, for messages of errors, and the document.

    Arguments and errors are those of :func:`read_documents`.
    """
    name = os.fspath(source)
    if name.startswith(HUB):
        yield from _documents(_numbered(name, _hub(name)), key)
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"source: no such file or folder: {path}")
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield from _documents(_numbered(name, _saved(path)), key)
            return
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p))
        if not files:
            raise DataError(f"{path}: expected {', '.join(SUFFIXES)} files, found none")
        for file in files:
            if not follow_links:
                _check_link(path, file)
            yield from read_placed_documents(file, key=key, separator=separator, encoding=encoding)
        return
    suffix = _suffix(path)
    if suffix in TEXTS:
        for number, text in enumerate(_texts(path, separator, encoding), 1):
            yield name if separator is None else f"{name}, document {number}", text
    elif suffix == ".jsonl":
        yield from _documents(read_json_lines(path, error=DataError), key)
    elif suffix == ".parquet":
        yield from _documents(_numbered(name, _parquet(path)), key)
    else:
        raise DataError(f"{path}: expected one of {', '.join(SUFFIXES)} (.gz too)")


def _check_link(folder: Path, file: Path) -> None:
    try:
        inside(folder, file.relative_to(folder).as_posix(), "source")
    except ValueError as error:
        raise DataError(f"{error} (--follow-links, follow_links=True, reads it)") from None


def _is_data(path: Path) -> bool:
    """Whether a file in a folder is read: README.md describes the data."""
    return _suffix(path) in SUFFIXES and path.name.lower() != "readme.md"


def _suffix(path: Path) -> str:
    """Suffix of a file's name, without ``.gz``."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _texts(path: Path, separator: str | None, encoding: str) -> Iterator[str]:
    try:
        with open_binary(path) as file:
            max_bytes = limit("text")
            is_compressed = path.suffix == ".gz"
            content = read_at_most(file, max_bytes) if is_compressed else file.read()
            if is_compressed and len(content) > max_bytes:
                raise DataError(
                    f"{path}: expected at most {max_bytes:,} bytes after decompression, got more; "
                    f"{raise_it('text')}"
                )
            text = content.decode(encoding).removeprefix("\ufeff")  # a byte order mark
    except LookupError:
        raise DataError(f"encoding: expected the name of an encoding, got {encoding!r}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected {encoding}, got an invalid byte at {error.start} (another encoding?)"
        ) from None
    except DAMAGED_GZIP as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from None
    parts = [text] if separator is None else text.split(separator)
    yield from (part for part in parts if part.strip())


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(lacking("Parquet files", "pyarrow", "train")) from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError(lacking("such sources", "datasets", "train")) from None
    return datasets


def _check_saved(path: Path) -> None:
    """Raise DataError if a folder of ``datasets.save_to_disk`` names a file outside the folder."""
    try:
        if (path / "dataset_dict.json").exists():
            file = inside(path, "dataset_dict.json", path)
            for split in read_json(file)["splits"]:
                inside(path, f"{split}/state.json", file)
                if (path / split / "dataset_dict.json").exists():  # such as the split "."
                    raise ValueError(f"the split {split!r:.80} is itself a dict of splits")
                _check_saved(path / split)
        else:
            file = inside(path, "state.json", path)
            for entry in read_json(file)["_data_files"]:
                inside(path, entry["filename"], file)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a dataset of datasets.save_to_disk: {error}") from None


def _saved(path: Path) -> Any:
    _check_saved(path)
    loaded = _datasets().load_from_disk(str(path))
    if not isinstance(loaded, dict):
        return loaded
    if "train" not in loaded:
        raise DataError(f"{path}: expected a split 'train', got {', '.join(map(str, loaded))}")
    return loaded["train"]


def _hub(name: str) -> Any:
    repository, *rest = name.removeprefix(HUB).split(":")
    if not repository or len(rest) > 2:
        raise DataError(f"source: expected hf:NAME[:CONFIG[:SPLIT]], got {name!r}")
    config = rest[0] if rest and rest[0] else None
    split = rest[1] if len(rest) == 2 else "train"
    return _datasets().load_dataset(repository, config, split=split, streaming=True)


def _numbered(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, for error messages, and the row."""
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def _documents(
    rows: Iterable[tuple[str, dict[str, Any]]], key: str
) -> Iterator[tuple[str, Document]]:
    for place, row in rows:
        if document := document_of(row, key, place):
            yield place, document
