"""A file or folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llama_fast._write import partial_name

# What a folder may hold that is overwritten: a checkpoint's files, of this package or of others.
_OURS = re.compile(
    r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?|params\.json"
    r"|consolidated\.\d+\.pth|tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja"
)


@contextlib.contextmanager
def written_whole(path: Path, *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """A place beside `path` to write to; it gets its name when the block ends without an error.

    Args:
        path: that is to be made.
        folder: whether it is a folder (the place given is an empty one) or a file (no file yet).
        overwrite: replace what is there, once the new one is complete.

    Raises:
        FileExistsError: it exists and is not to be overwritten, or is something else than a
            checkpoint.
        OSError: it could not be written; what was there before still is.
    """
    path = Path(os.path.abspath(path))
    _check(path, folder, overwrite)
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            partial.mkdir()
        yield partial
        for file in partial.iterdir() if folder else ():
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors lets nobody else read
            flush(file)
        flush(partial)
        if folder and path.exists():
            old = partial_name(path)
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
        flush(path.parent)
    except (ValueError, TypeError, ImportError):  # about what was to be written
        raise
    except Exception as error:  # each library has its own for a full disk
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{path}: could not be written ({reason}); nothing of it is left") from error
    finally:
        if folder:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _check(path: Path, folder: bool, overwrite: bool) -> None:
    if not path.exists():
        return
    if path.is_dir() != folder:
        kind = "folder" if folder else "file"
        raise FileExistsError(f"{path}: expected a {kind} or nothing there, got something else")
    if folder and not (held := sorted(entry.name for entry in path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{path}: exists already; another path, or overwriting it, is needed")
    if folder and (foreign := [name for name in held if not _OURS.fullmatch(name)]):
        raise FileExistsError(
            f"{path}: expected a checkpoint alone in a folder to be overwritten, got {foreign[0]!r}"
        )
    if not folder and path.open("rb").read(4) != b"GGUF":
        raise FileExistsError(f"{path}: expected a GGUF file to be overwritten, got another one")


def flush(path: Path) -> None:
    """Make the system write a file or folder to the disk, so that a power cut can't lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
