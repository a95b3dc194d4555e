"""Packs documents into sequences of fixed length, without padding.

A prediction is that of a token from the tokens before it in its document: n tokens make n - 1.
Documents are cut into segments of at most `seq_len` predictions, and segments are packed into
sequences by best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling",
arXiv:2404.10830). Nearly every sequence is full, a document is cut only if it is longer than a
sequence, and each prediction is made exactly once per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_fast.data.bin_packing import pack_sequences

# Segments packed at a time. More would not improve the packing, and the time is n log n.
WINDOW = 4096


@dataclass(frozen=True)
class PackingPlan:
    """The segments that make up each sequence of an epoch.

    Sequence i consists of the segments ``first[i]`` to ``first[i + 1] - 1``.

    Attributes:
        document: (segments,) int64, the document of each segment.
        start: (segments,) int64, position of the segment's first token in its document.
        length: (segments,) int64, number of predictions in the segment, which has one more token.
        first: (sequences + 1,) int64, index of each sequence's first segment.
    """

    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.first) - 1


def pack_epoch(
    lengths: npt.NDArray[np.int64], seq_len: int, *, seed: int, epoch: int, shuffle: bool = True
) -> PackingPlan:
    """Pack the documents of one epoch; the result depends on the arguments only.

    Args:
        lengths: (documents,) number of tokens in each. Documents of one token are left out: they
            have no predictions.
        seq_len: maximum number of predictions in a sequence.
        seed, epoch: determine the order of documents and sequences.
        shuffle: False keeps documents and sequences in their order.

    Raises:
        ValueError: `seq_len` is below 1, `seed` or `epoch` is negative, or there are no
            predictions.
    """
    if seq_len < 1:
        raise ValueError(f"seq_len: expected at least 1, got {seq_len}")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed, epoch: expected numbers >= 0, got {seed} and {epoch}")
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    predictions = lengths[order] - 1
    segments = -(-predictions // seq_len)  # of each document; 0 for one without predictions
    if not segments.sum():
        raise ValueError("lengths: expected a document of at least 2 tokens, got none")
    document = np.repeat(order, segments)
    # Index of each segment within its document: counts up, from 0 at each document.
    index = np.arange(len(document)) - np.repeat(np.cumsum(segments) - segments, segments)
    start = index * seq_len
    length = np.minimum(np.repeat(predictions, segments) - start, seq_len)

    sequence = np.empty(len(document), dtype=np.int64)
    count = 0
    for begin in range(0, len(document), WINDOW):
        window = slice(begin, begin + WINDOW)
        bins, num_bins = pack_sequences(length[window], seq_len)
        sequence[window] = bins + count
        count += num_bins
    if shuffle:
        sequence = generator.permutation(count)[sequence]
    by_sequence = np.argsort(sequence, kind="stable")
    first = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(sequence, minlength=count), out=first[1:])
    return PackingPlan(document[by_sequence], start[by_sequence], length[by_sequence], first)
