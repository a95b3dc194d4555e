"""Reads the checkpoints of a training run.

    FOLDER/step-00000200/shard-00001-model-00001-of-00001.safetensors   tensors of each rank
    FOLDER/step-00000200/state.json                                     everything else
    FOLDER/step-00000200/manifest.json                                  sha256 of the files above

Tensors are in the safetensors format of `torch.distributed.checkpoint`, so they can be read on
another number of ranks than wrote them. No file is a pickle. `llama-fast train` writes them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llama_fast._inside import inside
from llama_fast._reading import file_sha256, read_json
from llama_fast.models.config import Llama3RopeScaling, LlamaConfig

MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_NONE, _DAMAGED = -1, -2  # in place of a step number


class RunCheckpointError(OSError):
    """A checkpoint of a run cannot be written or read; the message names it."""


class Checkpoint(NamedTuple):
    """A checkpoint whose files have been verified by their hashes.

    Attributes:
        step: the training step after which it was written.
        path: its folder.
        state: the saved state besides the tensors.
    """

    step: int
    path: Path
    state: dict[str, Any]


class CheckpointReader:
    """Reads the checkpoints in one folder.

    With `torch.distributed` every rank must call every method, and all get the same checkpoint.

    Args:
        folder: the folder of the checkpoints, ``OUT/checkpoints`` of a run; it need not exist yet.
        log: called with one line for each damaged checkpoint that is skipped.

    Example:
        >>> checkpoints = CheckpointReader("run/checkpoints")
        >>> found = checkpoints.latest()
        >>> checkpoints.load(found, {"model.weight": weight})   # in place
    """

    def __init__(
        self, folder: str | os.PathLike[str], log: Callable[[str], object] = warnings.warn
    ) -> None:
        self.folder, self.log = Path(folder), log
        self._damaged: set[Path] = set()
        # A separate group: a save in the background must not mix with the model's collectives.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    @property
    def _is_first(self) -> bool:
        return self._group is None or dist.get_rank() == 0

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def _all(self) -> list[tuple[int, Path]]:
        """(step, folder) of the checkpoints that are marked as complete, the newest first."""
        if not self.folder.is_dir():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(((int(m[1]), path) for m, path in matches if m), reverse=True)

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if the folder has no checkpoint.

        Raises:
            RunCheckpointError: all checkpoints are damaged.
        """
        # One rank reads and verifies the files, and the others use its result.
        step = self._newest_whole() if self._is_first else _NONE
        if self._group is not None:
            said = torch.tensor(step)
            dist.broadcast(said, src=0, group=self._group)
            step = int(said)
        if step == _NONE:
            return None
        if step == _DAMAGED:
            raise RunCheckpointError(f"{self.folder}: expected a whole checkpoint, all are damaged")
        path = self._path(step)
        return Checkpoint(
            step, path, read_json(path / STATE, error=RunCheckpointError, links=False)
        )

    def _newest_whole(self) -> int:
        """The step of the newest undamaged checkpoint, or _NONE or _DAMAGED."""
        everything = self._all()
        self._damaged.clear()
        for step, path in everything:
            try:
                wrong = self._fault(path)
            except OSError as error:  # from a file system that may recover
                wrong = f"cannot be read: {error}"
            else:
                if wrong is None:
                    return step
                self._damaged.add(path)
            self.log(f"{path}: damaged checkpoint ({wrong}); using the one before it")
        return _DAMAGED if everything else _NONE

    @staticmethod
    def _fault(path: Path) -> str | None:
        """What is wrong with a checkpoint, or None; raises OSError if it cannot be read."""
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
        """Fill `tensors` in place with the values saved under their names, each rank its own part.

        Raises:
            RunCheckpointError: the checkpoint lacks a name or has another shape for it, or cannot
                be read.
        """
        try:
            self._load(found, tensors)
        except (RunCheckpointError, MemoryError):
            raise
        except Exception as error:
            raise RunCheckpointError(
                f"{found.path}: could not be read ({reason_of(error)})"
            ) from error

    def _load(self, found: Checkpoint, tensors: dict[str, Tensor]) -> None:
        import torch.distributed.checkpoint as dcp  # takes half a second, which few commands need

        reader = dcp.HuggingFaceStorageReader(str(found.path))
        saved = reader.read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            if name not in saved:
                raise RunCheckpointError(f"{found.path}: expected a tensor {name!r}, there is none")
            if saved[name].size != tensor.shape:
                raise RunCheckpointError(
                    f"{found.path}: {name}: expected shape {tuple(tensor.shape)}, got "
                    f"{tuple(saved[name].size)}"
                )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            try:
                dcp.load(
                    dict(tensors),
                    storage_reader=dcp.HuggingFaceStorageReader(str(found.path)),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            except dcp.api.CheckpointException as error:  # not an Exception
                raise RuntimeError(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """A one-line description of an error."""
    failures = getattr(error, "failures", None)  # the error of each rank, with a traceback
    cause = next(iter(failures.values()))[0] if failures else error
    text = " ".join(str(cause).split())[:300]
    if not text and isinstance(cause, MemoryError):
        return "out of memory"
    return text or type(cause).__name__


def recorded_shape(found: Checkpoint) -> LlamaConfig:
    """The configuration of the model in a run's checkpoint, checked before anything is allocated.

    Raises:
        RunCheckpointError: no model can be built from it, or it has more weights than the files
            hold.
    """
    check_state(found)
    where, fields = found.path / STATE, dict(found.state["model"])
    try:
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = Llama3RopeScaling(**fields["rope_scaling"])
        if fields.get("rope_factors") is not None:
            fields["rope_factors"] = tuple(fields["rope_factors"])
        shape = LlamaConfig(**fields)
    except (ValueError, TypeError) as error:
        raise RunCheckpointError(f"{where}: not a Llama model that can be built: {error}") from None
    held = sum(file.stat().st_size for file in found.path.glob("*.safetensors"))
    if shape.num_parameters() > held:  # each weight takes at least a byte
        raise RunCheckpointError(
            f"{where}: expected a model that the {held:,} bytes of tensors beside it can hold, got "
            f"one of {shape.num_parameters():,} weights"
        )
    return shape


def check_state(found: Checkpoint) -> None:
    """Raise RunCheckpointError unless the state has all parts of a run, each of the right type."""
    state: dict[str, Any] = {
        "loader": {},
        "scaler": {},
        "world_size": 1,
        "device": "cpu",
        **found.state,
    }
    for name, kind in _STATE.items():
        value: Any = state
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RunCheckpointError(
                f"{found.path / STATE}: expected {kind.__name__} for {name!r}, got {value!r:.80}"
            )


# The parts of a checkpoint's state, and their types.
_STATE: dict[str, type] = {
    "model": dict,
    "config": dict,
    "config.data": dict,
    "config.data.train": str,
    "config.optimizer": dict,
    "loader": dict,
    "scaler": dict,
    "world_size": int,
    "device": str,
}
