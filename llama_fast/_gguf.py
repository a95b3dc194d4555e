"""Reading GGUF files, for checkpoints and for the tokenizers in them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from gguf import GGUFReader


class Reader(GGUFReader):
    """The gguf package's reader, at twice its speed, and stopping at the end of the file.

    Args:
        path: file.
        mode: as for :class:`numpy.memmap`.

    Attributes:
        metadata: value of each key.

    Raises:
        ValueError: the file is truncated or damaged; names it.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Any = "r") -> None:
        try:
            super().__init__(path, mode)
            self.metadata = {key: field.contents() for key, field in self.fields.items()}
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path}: truncated or damaged GGUF file ({error})") from error

    @property
    def data(self) -> Any:
        """The file's bytes."""
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = np.asarray(mapped)  # the same memory: slicing a memmap itself is slow

    def _get(
        self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
    ) -> np.ndarray:
        part = super()._get(offset, dtype, count, override_order)
        if len(part) < count:  # a damaged count could go on for ever
            raise IndexError(f"byte {offset} and what follows are outside the file")
        return part
