"""Batches of packed sequences, in an order that depends on the seed only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llama_fast._reading import checked_int
from llama_fast.data.bin_packing import cu_seqlens
from llama_fast.data.packing import PackingPlan, pack_epoch
from llama_fast.data.rows import DataError
from llama_fast.data.shards import TokenShards

IGNORE = -100


class Batch(NamedTuple):
    """Concatenated segments of documents; a token attends to its own segment only.

    Attributes:
        tokens: (1,N) int64.
        targets: (1,N) int64, the token that follows each; -100 for tokens without loss.
        cu_seqlens: (segments + 1,) int32, the beginning of each segment, and N.
    """

    tokens: Tensor
    targets: Tensor
    cu_seqlens: Tensor

    @property
    def num_targets(self) -> int:
        """Number of tokens with a loss; for a batch in the CPU's memory."""
        return int(np.count_nonzero(self.targets.numpy() != IGNORE))


class PackedDataset(Dataset[Batch]):
    """The batches of one epoch.

    Args:
        shards: the documents.
        plan: packing of the epoch.
        batch_size: sequences in a batch; batch i begins with sequence i * batch_size.
    """

    def __init__(self, shards: TokenShards, plan: PackingPlan, batch_size: int) -> None:
        self.shards, self.plan, self.batch_size = shards, plan, batch_size

    def __len__(self) -> int:
        """Number of full batches; an incomplete last one is dropped."""
        return len(self.plan) // self.batch_size

    def __getitem__(self, index: int) -> Batch:
        """Read batch `index` from the shards.

        Raises:
            DataError: a shard is damaged.
        """
        first, last = self.plan.first[[index * self.batch_size, (index + 1) * self.batch_size]]
        tokens, targets = [], []
        for segment in range(first, last):
            start = int(self.plan.start[segment])
            stop = start + int(self.plan.length[segment]) + 1
            ids, answer = self.shards.read(int(self.plan.document[segment]), start, stop)
            tokens.append(ids[:-1])
            targets.append(np.where(answer[1:], ids[1:], IGNORE))
        offsets = cu_seqlens(self.plan.length[first:last])
        return Batch(
            torch.from_numpy(np.concatenate(tokens)).unsqueeze(0),
            torch.from_numpy(np.concatenate(targets)).unsqueeze(0),
            torch.from_numpy(offsets),
        )


@dataclass
class DataPosition:
    """Position of a run in its data: the next sequence of an epoch.

    Sequences are counted over all ranks, so a run can be resumed with another number of ranks.
    """

    epoch: int = 0
    sequence: int = 0


class PackedLoader:
    """Endless iterator over batches of packed documents, epoch after epoch.

    The batches depend only on the shards, `seq_len`, `seed` and the position, not on the number of
    workers or on interruptions of a run.

    Args:
        shards: the documents.
        seq_len: length of a packed sequence, the maximum number of predictions in it.
        batch_size: sequences in a batch of one rank.
        seed: seed for the order of the data.
        num_workers: number of processes that prefetch batches; 0 reads in this process.
        rank, world_size: index of this process among those that share the data, and their number.
        shuffle: False keeps the documents in their order.

    Raises:
        ValueError: an argument is out of its range.
        DataError: there is less data than one batch per rank.

    Example:
        >>> loader = PackedLoader(TokenShards("shards"), seq_len=1024, batch_size=4, seed=0)
        >>> batch = next(loader)
        >>> state = loader.state_dict()   # the next batch after load_state_dict(state) is the same
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        for name, value, minimum in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("world_size", world_size, 1),
        ):
            if value < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected one in [0, {world_size}), got {rank}")
        self.shards, self.seq_len, self.batch_size, self.seed = shards, seq_len, batch_size, seed
        self.num_workers, self.shuffle = num_workers, shuffle
        self.rank, self.world_size = rank, world_size
        self.position = DataPosition()
        self._epoch: tuple[int, PackingPlan] | None = None
        self._prefetched: Iterator[Batch] | None = None
        if len(self._plan()) < batch_size * world_size:
            raise DataError(
                f"{shards.folder}: expected at least {batch_size * world_size} sequences of "
                f"{seq_len} tokens (batch size {batch_size} on {world_size} ranks), got "
                f"{len(self._plan())}"
            )

    def __iter__(self) -> PackedLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch of this rank.

        Raises:
            DataError: a shard is damaged.
        """
        if self.batches_left() < 1:
            self.position = DataPosition(self.position.epoch + 1, 0)
            self._prefetched = None
        if self._prefetched is None:
            self._prefetched = self._prefetch()
        try:
            batch = next(self._prefetched)
        except DataError as error:
            # torch's message is the whole traceback of a worker; the error itself is at its end.
            raise DataError(str(error).rstrip().rpartition("DataError: ")[2]) from None
        self.position.sequence += self.batch_size * self.world_size
        return batch

    def _plan(self) -> PackingPlan:
        """Packing of the current epoch."""
        if self._epoch is None or self._epoch[0] != self.position.epoch:
            plan = pack_epoch(
                self.shards.lengths,
                self.seq_len,
                seed=self.seed,
                epoch=self.position.epoch,
                shuffle=self.shuffle,
            )
            self._epoch = (self.position.epoch, plan)
        return self._epoch[1]

    def batches_left(self) -> int:
        """Number of batches that are left for each rank in this epoch."""
        sequences = len(self._plan()) - self.position.sequence
        return sequences // (self.batch_size * self.world_size)

    def _prefetch(self) -> Iterator[Batch]:
        plan, begin = self._plan(), self.position.sequence
        # Count from the position: with another number of ranks it may not be at a batch's
        # beginning.
        rest = PackingPlan(plan.document, plan.start, plan.length, plan.first[begin:])
        own_batches = range(self.rank, self.batches_left() * self.world_size, self.world_size)
        loader: Any = DataLoader(
            PackedDataset(self.shards, rest, self.batch_size),
            batch_size=None,
            sampler=own_batches,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # by default it would be the model's
            worker_init_fn=_leave_signals_to_parent,
        )
        batches = iter(loader)
        if self.num_workers:
            _end_at_exit(batches._workers)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Everything that determines the next batch, as plain numbers and strings."""
        return {
            **asdict(self.position),
            "seed": self.seed,
            "seq_len": self.seq_len,
            "shuffle": self.shuffle,
            "content_sha256": self.shards.content_sha256,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned.

        Raises:
            ValueError: the state belongs to other data, or to another `seed`, `seq_len` or
                `shuffle`, so its position would mean other batches.
        """
        for name, own in self.state_dict().items():
            if name not in ("epoch", "sequence") and state.get(name) != own:
                raise ValueError(
                    f"{name}: expected {own!r} as in this run, got {state.get(name)!r}"
                )
        epoch, sequence = (
            checked_int(state.get(name), name, minimum=0, maximum=1 << 62)
            for name in ("epoch", "sequence")
        )
        self.position = DataPosition(epoch, sequence)
        self._prefetched = None


def _leave_signals_to_parent(worker: int) -> None:
    """Ignore SIGINT and SIGTERM, which a terminal or scheduler sends to all processes of a run.

    The parent ends its workers itself, after the step that it may still need them for; without a
    parent they end too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# Process id -> its workers: a process that is forked is not to end those of its parent.
_workers: dict[int, list[Any]] = {}


def _end_at_exit(workers: list[Any]) -> None:
    """End workers that still run when this process exits: they ignore what would end others.

    An iterator that is no longer needed ends its workers itself. One that takes more than a few
    seconds to start, on a busy machine, misses that, and gets SIGTERM, which it ignores. At its
    exit multiprocessing would wait for it forever.
    """
    process = os.getpid()
    if process not in _workers:
        # Before multiprocessing sends its children SIGTERM and waits for them.
        Finalize(None, _end_workers, args=(process,), exitpriority=1)
    running = [worker for worker in _workers.get(process, ()) if worker.is_alive()]
    _workers[process] = [*running, *workers]


def _end_workers(process: int) -> None:
    for worker in _workers.pop(process, ()):
        if worker.is_alive():
            worker.kill()
