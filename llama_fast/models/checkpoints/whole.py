"""Writes a checkpoint, a file or a folder, atomically."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llama_fast._write import partial_name

# Names of checkpoint files of this and other packages: only folders with such files are
# overwritten.
_CHECKPOINT_FILES = re.compile(
    r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?|params\.json"
    r"|consolidated\.\d+\.pth|tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja"
)


@contextlib.contextmanager
def written_whole(path: Path, *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it is renamed to `path` when the block succeeds.

    Args:
        path: path of the result.
        folder: whether the result is a folder (an empty folder is yielded) or a file (the yielded
            path does not exist yet).
        overwrite: replace an existing checkpoint once the new one is complete.

    Raises:
        FileExistsError: `path` exists and is not to be overwritten, or is not a checkpoint.
        OSError: writing failed; an existing checkpoint is unchanged.
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
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors makes it private to the user
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
    except (ValueError, TypeError, ImportError):  # wrong arguments, not a failure to write
        raise
    except Exception as error:  # each library raises its own error for a full disk
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
        expected = "folder" if folder else "file"
        raise FileExistsError(f"{path}: expected a {expected} or nothing there, got something else")
    if folder and not (names := sorted(entry.name for entry in path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{path}: exists already; choose another path or overwrite it")
    if folder and (foreign := [name for name in names if not _CHECKPOINT_FILES.fullmatch(name)]):
        raise FileExistsError(
            f"{path}: expected a checkpoint alone in a folder to be overwritten, got {foreign[0]!r}"
        )
    if not folder and path.open("rb").read(4) != b"GGUF":
        raise FileExistsError(f"{path}: expected a GGUF file to be overwritten, got another one")


def flush(path: Path) -> None:
    """fsync a file or folder, so that a power failure cannot lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
