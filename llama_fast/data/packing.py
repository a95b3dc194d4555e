"""Which documents go together into which row of an epoch, without padding.

A prediction is a token given those before it in its document: n tokens make n - 1. Documents are
cut into pieces of at most `capacity` predictions, and pieces are put together by best-fit
decreasing (Ding et al. 2024, "Fewer truncations improve language modeling", arXiv:2404.10830), so
nearly every row is full and a document is cut only where it is longer than a row. Every prediction
of the data is made exactly once an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_fast._host import pack_sequences

WINDOW = 4096  # pieces packed at a time: best-fit gains nothing with more, and takes n log n


@dataclass(frozen=True)
class Rows:
    """The rows of an epoch. Row r has the pieces ``first[r]`` to ``first[r + 1]``.

    Attributes:
        document: (pieces,) int64.
        start: (pieces,) int64, the piece's first token within its document.
        length: (pieces,) int64, predictions of it; it reads one token more.
        first: (rows + 1,) int64.
    """

    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.first) - 1


def pack_epoch(
    lengths: npt.NDArray[np.int64], capacity: int, *, seed: int, epoch: int, shuffle: bool = True
) -> Rows:
    """Rows of at most `capacity` predictions, a function of the arguments alone.

    Args:
        lengths: (documents,) tokens of each; those of one token predict nothing and are left out.
        capacity: the most predictions of a row.
        seed, epoch: fix the order of documents and of rows; each epoch has its own.
        shuffle: False keeps documents and rows in their order.

    Raises:
        ValueError: a capacity below 1, a negative seed or epoch, or nothing to predict.
    """
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1, got {capacity}")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed, epoch: expected numbers >= 0, got {seed} and {epoch}")
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    predictions = lengths[order] - 1
    pieces = -(-predictions // capacity)  # of each document; none if it predicts nothing
    if not pieces.sum():
        raise ValueError("lengths: expected a document of at least 2 tokens, got none")
    document = np.repeat(order, pieces)
    # Number of a piece within its document: counts up, from 0 again at each document.
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = number * capacity
    length = np.minimum(np.repeat(predictions, pieces) - start, capacity)

    row = np.empty(len(document), dtype=np.int64)
    rows = 0
    for begin in range(0, len(document), WINDOW):
        part = slice(begin, begin + WINDOW)
        bins, count = pack_sequences(length[part], capacity)
        row[part] = bins + rows
        rows += count
    if shuffle:
        row = generator.permutation(rows)[row]
    by_row = np.argsort(row, kind="stable")
    first = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=first[1:])
    return Rows(document[by_row], start[by_row], length[by_row], first)
