"""Packed batches out of token shards, in an order that a few numbers fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llama_fast._host import cu_seqlens
from llama_fast._reading import checked_int
from llama_fast.data.documents import DataError
from llama_fast.data.packing import Rows, pack_epoch
from llama_fast.data.shards import TokenShards

IGNORE = -100


class Batch(NamedTuple):
    """Sequences one after the other; no token attends to another sequence.

    Attributes:
        tokens: (1,N) int64.
        targets: (1,N) int64, the token that follows each; -100 where it is not to be learned.
        cu_seqlens: (sequences + 1,) int32, where each sequence begins, and N.
    """

    tokens: Tensor
    targets: Tensor
    cu_seqlens: Tensor


class PackedRows(Dataset[Batch]):
    """The batches of one epoch: batch i has the rows [i * rows, (i + 1) * rows)."""

    def __init__(self, shards: TokenShards, plan: Rows, rows: int) -> None:
        self.shards, self.plan, self.rows = shards, plan, rows

    def __len__(self) -> int:
        """Full batches; what is left over at the end of an epoch makes none."""
        return len(self.plan) // self.rows

    def __getitem__(self, index: int) -> Batch:
        """Batch number `index`, read from the shards."""
        first, last = self.plan.first[[index * self.rows, (index + 1) * self.rows]]
        tokens, targets = [], []
        for piece in range(first, last):
            start = int(self.plan.start[piece])
            stop = start + int(self.plan.length[piece]) + 1
            ids, answer = self.shards.read(int(self.plan.document[piece]), start, stop)
            tokens.append(ids[:-1])
            targets.append(np.where(answer[1:], ids[1:], IGNORE))
        offsets = cu_seqlens(self.plan.length[first:last])
        return Batch(
            torch.from_numpy(np.concatenate(tokens)).unsqueeze(0),
            torch.from_numpy(np.concatenate(targets)).unsqueeze(0),
            torch.from_numpy(offsets),
        )


@dataclass
class Place:
    """Where in the data a run stands: the next row of an epoch. This is all the state there is.

    Rows are counted over all ranks, so a run may go on with another number of them.
    """

    epoch: int = 0
    row: int = 0


class PackedLoader:
    """Batches of packed documents, epoch after epoch, without end.

    The batches depend on the shards, `capacity`, `seed` and the place alone: not on the number of
    workers, nor on where a run was interrupted. Ranks share out the rows of each step.

    Args:
        shards: the documents.
        capacity: the most predictions of a row, which is the longest sequence too.
        rows: rows of a batch.
        seed: of the order.
        workers: processes that read ahead; 0 reads in this one.
        rank, ranks: which share of each step's rows this process gets.
        shuffle: False keeps the documents in their order.

    Raises:
        ValueError: numbers that make no sense.
        DataError: less data than one step takes.

    Example:
        >>> loader = PackedLoader(TokenShards("shards"), capacity=1024, rows=4, seed=0)
        >>> batch = next(loader)
        >>> state = loader.state_dict()   # the next batch after load_state_dict(state) is the same
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        capacity: int,
        rows: int,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
    ) -> None:
        for name, value, least in (("rows", rows, 1), ("workers", workers, 0), ("ranks", ranks, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank: expected one in [0, {ranks}), got {rank}")
        self.shards, self.capacity, self.rows, self.seed = shards, capacity, rows, seed
        self.workers, self.rank, self.ranks, self.shuffle = workers, rank, ranks, shuffle
        self.place = Place()
        self._epoch: tuple[int, Rows] | None = None
        self._ahead: Iterator[Batch] | None = None
        if len(self._plan()) < rows * ranks:
            raise DataError(
                f"{shards.folder}: expected at least rows x ranks = {rows * ranks} rows of "
                f"{capacity} tokens for one step, got {len(self._plan())}"
            )

    def __iter__(self) -> PackedLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch of this rank.

        Raises:
            DataError: a damaged shard.
        """
        if self.steps_left() < 1:
            self.place = Place(self.place.epoch + 1, 0)
            self._ahead = None
        if self._ahead is None:
            self._ahead = self._read_ahead()
        try:
            batch = next(self._ahead)
        except DataError as error:
            # Of a worker, torch hands on the whole traceback as a message; the error is its end.
            raise DataError(str(error).rstrip().rpartition("DataError: ")[2]) from None
        self.place.row += self.rows * self.ranks
        return batch

    def _plan(self) -> Rows:
        if self._epoch is None or self._epoch[0] != self.place.epoch:
            plan = pack_epoch(
                self.shards.lengths,
                self.capacity,
                seed=self.seed,
                epoch=self.place.epoch,
                shuffle=self.shuffle,
            )
            self._epoch = (self.place.epoch, plan)
        return self._epoch[1]

    def steps_left(self) -> int:
        """Steps left in this epoch."""
        return (len(self._plan()) - self.place.row) // (self.rows * self.ranks)

    def _read_ahead(self) -> Iterator[Batch]:
        plan, begin = self._plan(), self.place.row
        # Another number of ranks may have left the place anywhere, so batches count from it.
        rest = Rows(plan.document, plan.start, plan.length, plan.first[begin:])
        mine = range(self.rank, self.steps_left() * self.ranks, self.ranks)
        loader: Any = DataLoader(
            PackedRows(self.shards, rest, self.rows),
            batch_size=None,
            sampler=mine,
            num_workers=self.workers,
            generator=torch.Generator(),  # or it draws from torch's own, which is the model's
        )
        return iter(loader)

    def state_dict(self) -> dict[str, Any]:
        """What the next batch depends on; plain numbers and strings."""
        return {
            **asdict(self.place),
            "seed": self.seed,
            "capacity": self.capacity,
            "shuffle": self.shuffle,
            "content_sha256": self.shards.content_sha256,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other data, or of another seed, capacity or order; the place
                would mean other batches here.
        """
        for name, mine in self.state_dict().items():
            if name not in ("epoch", "row") and state.get(name) != mine:
                raise ValueError(
                    f"{name}: expected {mine!r} as in this run, got {state.get(name)!r}"
                )
        place = (
            checked_int(state.get(name), name, minimum=0, maximum=1 << 62)
            for name in ("epoch", "row")
        )
        self.place = Place(*place)
        self._ahead = None
