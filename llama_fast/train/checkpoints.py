"""Checkpoints of a run: written whole or not at all, verified before they are trusted, rotated.

    FOLDER/step-00000200/shard-00001-model-00001-of-00001.safetensors   tensors of each rank
    FOLDER/step-00000200/state.json                                     everything else
    FOLDER/step-00000200/manifest.json                                  sha256 of the files above

Tensors go through `torch.distributed.checkpoint` in the safetensors format, so they can be read
back on another number of ranks. No file is a pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from llama_fast._inside import inside
from llama_fast._reading import file_sha256, read_json
from llama_fast.models.checkpoints.whole import flush

MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_NONE, _DAMAGED = -1, -2  # in the place of a step


class CheckpointError(OSError):
    """A checkpoint cannot be written, or none can be read; the message names it."""


class Checkpoint(NamedTuple):
    """A checkpoint whose files have the hashes they were written with.

    Attributes:
        step: after which it was taken.
        path: its folder.
        state: what was saved beside the tensors.
    """

    step: int
    path: Path
    state: dict[str, Any]


class CheckpointManager:
    """The checkpoints in one folder.

    A checkpoint is written under another name, flushed to the disk, and renamed: a process killed
    at any moment leaves whole checkpoints and at most one folder that :meth:`save` clears away.
    With `torch.distributed` every rank calls every method; rank 0 writes state and manifest.

    Args:
        folder: made when the first is saved.
        keep_last: how many to keep; older ones, and those that :meth:`latest` found damaged, are
            deleted after a new one is complete. 0 keeps all.
        log: called with one line about each damaged checkpoint that is passed over.

    Example:
        >>> checkpoints = CheckpointManager("run/checkpoints", keep_last=3)
        >>> checkpoints.save(100, {"model.weight": weight}, {"lr": 1e-3}, asynchronous=True)
        >>> checkpoints.wait()
        >>> found = checkpoints.latest()
        >>> checkpoints.load(found, {"model.weight": weight})   # in place
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        log: Callable[[str], object] = warnings.warn,
    ) -> None:
        if keep_last < 0:
            raise ValueError(f"keep_last: expected a number >= 0, got {keep_last}")
        self.folder, self.keep_last, self.log = Path(folder), keep_last, log
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._damaged: set[Path] = set()
        # A group of its own: a save in the background may not meet the model's communication.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    @property
    def _is_first(self) -> bool:
        return self._group is None or dist.get_rank() == 0

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        *,
        asynchronous: bool = False,
    ) -> None:
        """Write a checkpoint; one of the same step is replaced.

        Args:
            step: >= 0.
            tensors: by name; copied before this returns, so they may change at once.
            state: anything JSON can hold.
            asynchronous: write in a thread. What goes wrong there is raised by the next call.

        Raises:
            CheckpointError: the disk is full, or another failure; earlier checkpoints are whole.
                Or the one before could not be written; then this one is written first, not in a
                thread, and is there if there was room again.
            TypeError: `state` holds what JSON cannot.
        """
        if step < 0:
            raise ValueError(f"step: expected a number >= 0, got {step}")
        text = json.dumps(state, indent=1)
        before = self._join()
        copies = {name: _copied(tensor) for name, tensor in tensors.items()}
        if before is not None:
            try:
                self._write(step, copies, text)
            except CheckpointError:
                raise before from None
            name = self._path(step).name
            raise CheckpointError(f"{before}; {name} was written since") from before
        if not asynchronous:
            self._write(step, copies, text)
            return

        def write() -> None:
            try:
                self._write(step, copies, text)
            except BaseException as error:
                self._error = error

        thread = threading.Thread(target=write, name="checkpoint", daemon=False)
        try:
            thread.start()
        except RuntimeError:  # no room for another one's stack, or too many of them
            self._write(step, copies, text)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Until the checkpoint being written is complete.

        Raises:
            CheckpointError: it could not be written.
        """
        error = self._join()
        if error is not None:
            raise error

    def _join(self) -> BaseException | None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    @property
    def pending(self) -> bool:
        """Whether a save in the background was begun of which nothing is known yet."""
        return self._thread is not None

    @property
    def is_writing(self) -> bool:
        """Whether a save in the background goes on, so that :meth:`wait` would wait."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether :meth:`wait` would raise; known once nothing :attr:`is_writing`."""
        return self._error is not None

    def _write(self, step: int, tensors: dict[str, Tensor], state: str) -> None:
        path = self._path(step)
        partial = self.folder / f".{path.name}.partial"
        try:
            self.by_first_rank(lambda: self._begin(partial))
            _save_tensors(tensors, partial, self._group)
            self.by_first_rank(lambda: self._complete(partial, path, state))
        except (Exception, dcp.api.CheckpointException) as error:  # the latter is no Exception
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"{path}: could not be written ({_reason(error)}); earlier checkpoints are whole"
            ) from error

    def by_first_rank(self, work: Callable[[], None]) -> None:
        """Let rank 0 work; the others wait, and fail with it.

        Raises:
            OSError: rank 0 failed; there its own error is raised.
        """
        error: Exception | None = None
        if self._is_first:
            try:
                work()
            except Exception as caught:
                error = caught
        if self._group is not None:
            failed = torch.tensor(error is not None)
            dist.broadcast(failed, src=0, group=self._group)
            if failed and error is None:
                raise OSError("rank 0 failed, and says why")
        if error is not None:
            raise error

    def _begin(self, partial: Path) -> None:
        if self.folder.is_symlink():  # to rotate would delete what lies elsewhere
            raise OSError(f"expected a folder, got a link to {self.folder.resolve()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(".step-*"):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()

    def _complete(self, partial: Path, path: Path, state: str) -> None:
        (partial / STATE).write_text(state, encoding="utf-8")
        files = sorted(file for file in partial.iterdir() if file.is_file())
        manifest = {file.name: {"sha256": file_sha256(file), "bytes": file.stat().st_size}
                    for file in files}  # fmt: skip
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in (*partial.iterdir(), partial):
            flush(file)
        if path.exists():  # of a run that went on from an earlier step
            replaced = path.with_name(f".{path.name}.replaced")
            path.rename(replaced)
            partial.rename(path)
            shutil.rmtree(replaced)
        else:
            partial.rename(path)
        flush(self.folder)
        self._damaged.discard(path)
        if self.keep_last:
            self._rotate(path)

    def _rotate(self, newest: Path) -> None:
        """Delete what is not to be kept beside the one just written.

        That one stays even if there are later steps: a run may have gone on from before them.
        Damaged ones do not count, or they would take the place of whole ones.
        """
        others = [path for _, path in self._all() if path != newest]
        whole = [path for path in others if path not in self._damaged]
        for old in set(others) - set(whole[: self.keep_last - 1]):
            # Renamed first: a folder half deleted is not taken for a damaged checkpoint.
            gone = old.with_name(f".{old.name}.old")
            old.rename(gone)
            shutil.rmtree(gone)
        self._damaged.clear()

    def _all(self) -> list[tuple[int, Path]]:
        """(step, folder) of those that claim to be complete, the newest first."""
        if not self.folder.is_dir():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(((int(m[1]), path) for m, path in matches if m), reverse=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        self.wait()
        # One rank reads and compares it all, and the others go by what it found.
        step = self._newest_whole() if self._is_first else _NONE
        if self._group is not None:
            said = torch.tensor(step)
            dist.broadcast(said, src=0, group=self._group)
            step = int(said)
        if step == _NONE:
            return None
        if step == _DAMAGED:
            raise CheckpointError(f"{self.folder}: expected a whole checkpoint, all are damaged")
        path = self._path(step)
        return Checkpoint(step, path, read_json(path / STATE, error=CheckpointError, links=False))

    def _newest_whole(self) -> int:
        """The step of the newest checkpoint without a fault, _NONE or _DAMAGED."""
        everything = self._all()
        self._damaged.clear()
        for step, path in everything:
            try:
                wrong = self._fault(path)
            except OSError as error:  # of a file system that may give it another time
                wrong = f"cannot be read: {error}"
            else:
                if wrong is None:
                    return step
                self._damaged.add(path)
            self.log(f"{path}: damaged checkpoint ({wrong}); using the one before it")
        return _DAMAGED if everything else _NONE

    @staticmethod
    def _fault(path: Path) -> str | None:
        """What is wrong with a checkpoint, None if nothing is. OSError: it cannot be read."""
        try:
            manifest = read_json(path / MANIFEST, links=False)
            for file in path.glob("*.safetensors"):  # all of them are read
                if file.name not in manifest:
                    return f"{file.name} is not in {MANIFEST}"
            for name, entry in manifest.items():
                file = inside(path, name, MANIFEST)
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
                    return f"{name} does not have its sha256"
            return None if STATE in manifest else f"{STATE} is missing"
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST}: {error}"

    def load(self, found: Checkpoint, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors`, each rank its own part of them, with what was saved under their names.

        Raises:
            CheckpointError: a name or a shape that the checkpoint does not have, or it cannot be
                read.
        """
        try:
            self._load(found, tensors)
        except (CheckpointError, MemoryError):
            raise
        except (Exception, dcp.api.CheckpointException) as error:  # the latter is no Exception
            raise CheckpointError(f"{found.path}: could not be read ({_reason(error)})") from error

    def _load(self, found: Checkpoint, tensors: dict[str, Tensor]) -> None:
        reader = dcp.HuggingFaceStorageReader(str(found.path))
        saved = reader.read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            if name not in saved:
                raise CheckpointError(f"{found.path}: expected a tensor {name!r}, there is none")
            if saved[name].size != tensor.shape:
                raise CheckpointError(
                    f"{found.path}: {name}: expected shape {tuple(tensor.shape)}, got "
                    f"{tuple(saved[name].size)}"
                )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(
                dict(tensors),
                storage_reader=dcp.HuggingFaceStorageReader(str(found.path)),
                process_group=self._group,
                no_dist=self._group is None,
            )


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    failures = getattr(error, "failures", None)  # the cause at each rank, with a traceback
    cause = next(iter(failures.values()))[0] if failures else error
    text = " ".join(str(cause).split())[:300]
    if not text and isinstance(cause, MemoryError):
        return "out of memory"
    return text or type(cause).__name__


def _save_tensors(tensors: dict[str, Tensor], path: Path, group: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(
            dict(tensors),
            storage_writer=dcp.HuggingFaceStorageWriter(str(path), save_distributed=True),
            process_group=group,
            no_dist=group is None,
        )


def _copied(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory, sharded as `tensor` is."""
    # In the order of its indices, for safetensors knows no other.
    return tensor.detach().to("cpu", copy=True).contiguous()
