"""Checkpoints of a run: written whole or not at all, verified before they are trusted, rotated.

The files are those that :mod:`llama_fast.models.checkpoints.training` reads.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from llama_fast._reading import file_sha256
from llama_fast.models.checkpoints.training import (
    MANIFEST,
    STATE,
    Checkpoint,
    CheckpointError,
    CheckpointReader,
    reason_of,
)
from llama_fast.models.checkpoints.whole import flush


class CheckpointManager(CheckpointReader):
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
        super().__init__(folder, log)
        self.keep_last = keep_last
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def latest(self) -> Checkpoint | None:
        """See :meth:`CheckpointReader.latest`; waits for a save in the background first."""
        self.wait()
        return super().latest()

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
            self.on_first_rank(lambda: self._begin(partial))
            _save_tensors(tensors, partial, self._group)
            self.on_first_rank(lambda: self._complete(partial, path, state))
        except (Exception, dcp.api.CheckpointException) as error:  # the latter is no Exception
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"{path}: could not be written ({reason_of(error)}); earlier checkpoints are whole"
            ) from error

    def on_first_rank(self, work: Callable[[], None]) -> None:
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
