"""Batches that depend on a few numbers alone: not on workers, ranks, or interruptions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_fast.data import Batch, DataError, PackedLoader, ShardWriter, TokenShards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """200 documents; each token tells its document and place: no two are the same."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    lengths = np.random.default_rng(0).integers(2, 90, 200)
    ends = np.cumsum(lengths)
    with ShardWriter(folder, vocab_size=1 << 17, tokenizer={}, shard_tokens=1000) as writer:
        for end, length in zip(ends, lengths, strict=True):
            writer.add(range(end - length, end))
    return TokenShards(folder)


def same(one: list[Batch], other: list[Batch]) -> bool:
    """Whether both have the same batches, tensor by tensor."""
    pairs = [(a, b) for x, y in zip(one, other, strict=False) for a, b in zip(x, y, strict=True)]
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in pairs)


def take(loader: PackedLoader, count: int) -> list[Batch]:
    return [next(loader) for _ in range(count)]


def test_a_batch_is_whole_sequences_and_what_follows_them(shards: TokenShards) -> None:
    batch = next(PackedLoader(shards, seq_len=64, batch_size=3))
    assert batch.tokens.shape == batch.targets.shape == (1, int(batch.cu_seqlens[-1]))
    assert torch.equal(batch.targets, batch.tokens + 1)  # tokens count up within a document
    starts = batch.cu_seqlens[1:-1].long()
    assert (batch.tokens[0, starts] != batch.targets[0, starts - 1]).any()
    assert int(batch.cu_seqlens.diff().max()) <= 64


def test_an_epoch_has_every_prediction_once(shards: TokenShards) -> None:
    loader = PackedLoader(shards, seq_len=64, batch_size=1)
    seen: list[int] = []
    while loader.position.epoch == 0 and loader.batches_left():
        seen += next(loader).tokens[0].tolist()
    everything = set(range(shards.num_tokens)) - set((np.cumsum(shards.lengths) - 1).tolist())
    assert len(seen) == len(everything) and set(seen) == everything


def test_workers_change_nothing(shards: TokenShards) -> None:
    alone = PackedLoader(shards, seq_len=64, batch_size=2, seed=1)
    helped = PackedLoader(shards, seq_len=64, batch_size=2, seed=1, num_workers=2)
    assert same(take(alone, 90), take(helped, 90))  # more than an epoch
    assert alone.position.epoch == helped.position.epoch == 1


@pytest.mark.parametrize("done", [0, 1, 7, 67, 68, 69, 75])
def test_goes_on_as_if_never_interrupted(shards: TokenShards, done: int) -> None:
    whole = PackedLoader(shards, seq_len=64, batch_size=2, seed=2, num_workers=2)
    take(whole, done)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = PackedLoader(shards, seq_len=64, batch_size=2, seed=2)
    resumed.load_state_dict(state)
    assert same(take(whole, 5), take(resumed, 5))


def test_ranks_share_what_one_process_reads(shards: TokenShards) -> None:
    """Also when their number changes on the way: 4 ranks of 1 row are 1 rank of 4 rows."""
    one = PackedLoader(shards, seq_len=64, batch_size=4)
    four = [
        PackedLoader(shards, seq_len=64, batch_size=1, rank=rank, world_size=4) for rank in range(4)
    ]
    for _ in range(3):
        tokens = torch.cat([next(loader).tokens for loader in four], dim=1)
        assert torch.equal(next(one).tokens, tokens)
    two = [
        PackedLoader(shards, seq_len=64, batch_size=2, rank=rank, world_size=2) for rank in range(2)
    ]
    for loader in two:
        loader.load_state_dict(four[0].state_dict())
    assert torch.equal(next(one).tokens, torch.cat([next(r).tokens for r in two], dim=1))


def test_reading_leaves_torchs_random_numbers_alone(shards: TokenShards) -> None:
    before = torch.get_rng_state()
    take(PackedLoader(shards, seq_len=64, batch_size=2, num_workers=1), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_tokens_that_are_no_answers_are_not_targets(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", vocab_size=9, tokenizer={}, with_answers=True) as writer:
        writer.add([1, 2, 3, 4], [False, False, True, True])
    batch = next(PackedLoader(TokenShards(tmp_path / "s"), seq_len=8, batch_size=1))
    assert batch.tokens.tolist() == [[1, 2, 3]] and batch.targets.tolist() == [[-100, 3, 4]]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_comes_later_is_one_line(tmp_path: Path, workers: int) -> None:
    with ShardWriter(tmp_path / "s", vocab_size=9, tokenizer={}) as writer:
        writer.add([1, 2, 3, 4])
    loader = PackedLoader(TokenShards(tmp_path / "s"), seq_len=8, batch_size=1, num_workers=workers)
    tokens = np.load(tmp_path / "s/00000.tokens.npy", mmap_mode="r+")
    tokens[1] = 5000
    tokens.flush()
    message = r"^\S*00000.tokens.npy: damaged shard: document 0 has the id 5000, expected .* 9$"
    with pytest.raises(DataError, match=message):
        next(loader)


def test_refusals(shards: TokenShards) -> None:
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        PackedLoader(shards, seq_len=64, batch_size=0)
    with pytest.raises(ValueError, match=r"rank: expected one in \[0, 2\), got 2"):
        PackedLoader(shards, seq_len=64, batch_size=1, rank=2, world_size=2)
    with pytest.raises(DataError, match="expected at least 999 sequences of 64 tokens"):
        PackedLoader(shards, seq_len=64, batch_size=999)
    state = PackedLoader(shards, seq_len=64, batch_size=1).state_dict()
    with pytest.raises(ValueError, match="seq_len: expected 32 as in this run, got 64"):
        PackedLoader(shards, seq_len=32, batch_size=1).load_state_dict(state)
    with pytest.raises(ValueError, match="content_sha256: expected"):
        PackedLoader(shards, seq_len=64, batch_size=1).load_state_dict(
            {**state, "content_sha256": "0"}
        )


FORGETS = """
import sys
from llama_fast.data import PackedLoader, ShardWriter, TokenShards
with ShardWriter(sys.argv[1], vocab_size=50, tokenizer={}) as writer:
    for number in range(60):
        writer.add([number % 50] * 9)
loader = PackedLoader(TokenShards(sys.argv[1]), seq_len=8, batch_size=1, num_workers=1)
print(len(next(loader).tokens))
"""


def test_a_process_ends_although_its_workers_still_run(tmp_path: Path) -> None:
    """They ignore the SIGTERM by which multiprocessing ends them before it waits for them."""
    command = [sys.executable, "-c", FORGETS, str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "1\n", done.stderr


STARTS_SLOWLY = (
    FORGETS
    + """
import gc, os, signal
os.kill(loader._prefetched._workers[0].pid, signal.SIGSTOP)  # as if it had not started yet
del loader
gc.collect()  # the iterator waits some seconds for its worker, sends SIGTERM and gives up
"""
)


def test_a_process_ends_although_a_worker_missed_its_end(tmp_path: Path) -> None:
    """As one does that starts slowly on a busy machine: nothing but SIGKILL ends it then."""
    command = [sys.executable, "-c", STARTS_SLOWLY, str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "1\n", done.stderr
