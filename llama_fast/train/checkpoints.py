"""Write the checkpoints of a run: atomically, with hashes, and keeping the last few.

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
    CheckpointReader,
    RunCheckpointError,
    reason_of,
)
from llama_fast.models.checkpoints.whole import flush
from llama_fast.train.checkpoint_writer import StreamingWriter
from llama_fast.train.safetensors_file import WrittenFile


class CheckpointManager(CheckpointReader):
    """Writes and reads the checkpoints in one folder.

    A checkpoint is written under a temporary name, flushed to the disk, and renamed. A process that
    is killed at any moment leaves complete checkpoints and at most one temporary folder, which the
    next :meth:`save` deletes. With `torch.distributed` every rank calls every method; rank 0 writes
    state and manifest.

    Args:
        folder: folder of the checkpoints, created when the first one is saved.
        keep_last: number of checkpoints to keep. Older ones, and those that :meth:`latest` found
            damaged, are deleted after a new one is complete. 0 keeps all.
        log: called with one line about each damaged checkpoint that is skipped.

    Raises:
        ValueError: `keep_last` is negative.

    Example:
        >>> checkpoints = CheckpointManager("run/checkpoints", keep_last=3)
        >>> checkpoints.save(100, {"model.weight": weight}, {"lr": 1e-3}, asynchronous=True)
        >>> checkpoints.wait()
        >>> checkpoint = checkpoints.latest()
        >>> checkpoints.load(checkpoint, {"model.weight": weight})   # in place
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
        """Write a checkpoint, replacing one of the same step.

        Args:
            step: number of steps done, >= 0.
            tensors: name -> tensor; copied before this returns, so they may be changed immediately.
            state: a JSON value to save with them.
            asynchronous: whether to write in a background thread. Its error is raised by the next
                call of :meth:`save` or :meth:`wait`.

        Raises:
            RunCheckpointError: this checkpoint could not be written, for example because the disk
                is full; earlier ones are intact. Or writing the previous one in the background
                failed; this one was then written synchronously, if that was possible.
            TypeError: `state` has a value that JSON cannot represent.
        """
        if step < 0:
            raise ValueError(f"step: expected a number >= 0, got {step}")
        text = json.dumps(state, indent=1)
        previous_error = self._join()
        copies = {name: _copied(tensor) for name, tensor in tensors.items()}
        if previous_error is not None:
            try:
                self._write(step, copies, text)
            except RunCheckpointError:
                raise previous_error from None
            name = self._path(step).name
            raise RunCheckpointError(
                f"{previous_error}; {name} was written since"
            ) from previous_error
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
        except RuntimeError:  # no memory for its stack, or too many threads
            self._write(step, copies, text)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Wait until the save in the background is complete.

        Raises:
            RunCheckpointError: the checkpoint could not be written.
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
        """Whether a save in the background has not been waited for yet."""
        return self._thread is not None

    @property
    def is_writing(self) -> bool:
        """Whether a save in the background is running, so that :meth:`wait` would block."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether :meth:`wait` would raise; final once :attr:`is_writing` is False."""
        return self._error is not None

    def _write(self, step: int, tensors: dict[str, Tensor], state: str) -> None:
        path = self._path(step)
        partial = self.folder / f".{path.name}.partial"
        try:
            self.on_first_rank(lambda: self._begin(partial))
            files = _save_tensors(tensors, partial, self._group)
            self.on_first_rank(lambda: self._complete(partial, path, state, files))
        except (Exception, dcp.api.CheckpointException) as error:  # the latter is not an Exception
            shutil.rmtree(partial, ignore_errors=True)
            raise RunCheckpointError(
                f"{path}: could not be written ({reason_of(error)}); earlier checkpoints are intact"
            ) from error

    def on_first_rank(self, work: Callable[[], None]) -> None:
        """Call `work` on rank 0; the other ranks wait, and raise an error if it fails.

        Raises:
            OSError: on the other ranks, if rank 0 failed. Rank 0 raises the error of `work`.
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
                raise OSError("rank 0 failed; see its error")
        if error is not None:
            raise error

    def _begin(self, partial: Path) -> None:
        if self.folder.is_symlink():  # deleting old checkpoints would delete files elsewhere
            raise OSError(f"expected a folder, got a link to {self.folder.resolve()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(".step-*"):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()

    def _complete(
        self, partial: Path, path: Path, state: str, files: dict[str, WrittenFile]
    ) -> None:
        (partial / STATE).write_text(state, encoding="utf-8")
        files[STATE] = WrittenFile(file_sha256(partial / STATE), (partial / STATE).stat().st_size)
        manifest = {name: file._asdict() for name, file in sorted(files.items())}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in (*partial.iterdir(), partial):
            flush(file)
        if path.exists():  # written before the run was resumed from an earlier step
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
        """Delete old checkpoints.

        The one just written is kept even if there are later steps: the run may have been resumed
        from an earlier one. Damaged checkpoints are not counted, and are deleted.
        """
        others = [path for _, path in self._all() if path != newest]
        intact = [path for path in others if path not in self._damaged]
        for old in set(others) - set(intact[: self.keep_last - 1]):
            # Renamed first: a partly deleted folder must not look like a damaged checkpoint.
            renamed = old.with_name(f".{old.name}.old")
            old.rename(renamed)
            shutil.rmtree(renamed)
        self._damaged.clear()


def _save_tensors(tensors: dict[str, Tensor], path: Path, group: Any) -> dict[str, WrittenFile]:
    """Write the tensors; return the files' hashes on rank 0, nothing on the others."""
    writer = StreamingWriter(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    return writer.files


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous copy in CPU memory, as safetensors requires, sharded like `tensor`."""
    return tensor.detach().to("cpu", copy=True).contiguous()
