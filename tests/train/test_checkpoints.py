"""Checkpoints are bitwise exact, and survive kills, full disks and damage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from llama_fast._reading import file_sha256
from llama_fast.models.checkpoints.training import Checkpoint, RunCheckpointError
from llama_fast.train.checkpoints import CheckpointManager
from llama_fast.train.safetensors_file import DTYPES, write_safetensors
from tests.paths import REPOSITORY
from tests.ranks import FORKED, start
from tests.train import checkpoint_memory


def tensors(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    wide = torch.randn(16, 12, generator=g)
    return {
        "weight": wide,
        "transposed": torch.randn(12, 16, generator=g).t(),
        "bf16": wide.bfloat16(),
        "double": wide.double() / 3,
        "rng": g.get_state(),
        "step": torch.tensor(float(seed)),
        "strange": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def bits(found: dict[str, Tensor]) -> dict[str, bytes]:
    return {k: v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for k, v in found.items()}  # fmt: skip


def loaded(checkpoints: CheckpointManager, found: Checkpoint | None) -> dict[str, Tensor]:
    assert found is not None
    empty = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    checkpoints.load(found, empty)
    return empty


@pytest.mark.parametrize("asynchronous", [False, True])
def test_loads_bit_for_bit(tmp_path: Path, asynchronous: bool) -> None:
    checkpoints = CheckpointManager(tmp_path / "c")
    assert checkpoints.latest() is None
    mine = tensors(3)
    expected = bits(mine)
    checkpoints.save(7, mine, {"lr": 0.1, "place": {"row": 3}}, asynchronous=asynchronous)
    for tensor in mine.values():
        tensor.zero_()  # training goes on
    found = CheckpointManager(tmp_path / "c").latest() if not asynchronous else checkpoints.latest()
    assert found is not None and (found.step, found.state) == (7, {"lr": 0.1, "place": {"row": 3}})
    assert bits(loaded(checkpoints, found)) == expected


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path, keep_last=2)
    for step in (100_000_000, 5, 9, 100):
        checkpoints.save(step, tensors(), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100", "step-100000000"]


def test_the_one_just_written_is_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path, keep_last=1)
    for step in (9, 5):  # of a run that went on from before step 9
        checkpoints.save(step, tensors(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_damaged_checkpoints_are_not_counted(tmp_path: Path, keep: int) -> None:
    for step in (100, 200):
        CheckpointManager(tmp_path).save(step, tensors(step), {})
    (tmp_path / "step-00000200" / "state.json").write_text("")
    checkpoints = CheckpointManager(tmp_path, keep_last=keep, log=lambda line: None)
    found = checkpoints.latest()
    assert found is not None and found.step == 100
    checkpoints.save(150, tensors(150), {})
    left = {0: [100, 150, 200], 1: [150], 2: [100, 150]}[keep]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08}" for step in left]
    found = checkpoints.latest()
    assert found is not None and found.step == 150
    checkpoints.save(200, tensors(201), {})  # written anew, it counts
    found = checkpoints.latest()
    assert found is not None and found.step == 200
    assert bits(loaded(checkpoints, found)) == bits(tensors(201))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path)
    for seed in (1, 2):
        checkpoints.save(4, tensors(seed), {"seed": seed})
    found = checkpoints.latest()
    assert found is not None and found.state == {"seed": 2}
    assert bits(loaded(checkpoints, found)) == bits(tensors(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_an_unreadable_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary error of the file system does not mark a checkpoint as damaged."""
    for step in (100, 200):
        CheckpointManager(tmp_path).save(step, tensors(step), {})
    said: list[str] = []
    checkpoints = CheckpointManager(tmp_path, keep_last=2, log=said.append)

    def fails(path: Path) -> str:
        if "step-00000200" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return file_sha256(path)

    with monkeypatch.context() as patch:
        patch.setattr("llama_fast.models.checkpoints.training.file_sha256", fails)
        found = checkpoints.latest()
    assert found is not None and found.step == 100
    assert "cannot be read: [Errno 5] Input/output error" in said[0]
    checkpoints.save(150, tensors(150), {})
    checkpoints.wait()
    found = checkpoints.latest()
    assert found is not None and found.step == 200


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("pattern", ["*.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_skipped_and_named(
    tmp_path: Path, pattern: str, damage: object
) -> None:
    said: list[str] = []
    checkpoints = CheckpointManager(tmp_path, log=said.append)
    for step in (1, 2):
        checkpoints.save(step, tensors(step), {})
    (file,) = (tmp_path / "step-00000002").glob(pattern)
    damage(file)  # type: ignore[operator]
    found = checkpoints.latest()
    assert found is not None and found.step == 1
    assert len(said) == 1 and "step-00000002: damaged checkpoint (" in said[0]
    assert bits(loaded(checkpoints, found)) == bits(tensors(1))
    (tmp_path / "step-00000001" / "state.json").unlink()
    with pytest.raises(RunCheckpointError, match="expected a whole checkpoint, all are damaged"):
        checkpoints.latest()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_loses_nothing(tmp_path: Path, asynchronous: bool) -> None:
    """A limit on the size of files acts like a full disk: writing raises OSError."""
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(1, tensors(1), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(
            RunCheckpointError, match=r"step-00000002: could not be written \(.*intact"
        ):
            checkpoints.save(2, {"big": torch.zeros(9999)}, {}, asynchronous=asynchronous)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert bits(loaded(checkpoints, checkpoints.latest())) == bits(tensors(1))
    checkpoints.save(3, tensors(3), {})  # there is room again


SAVE_FOR_EVER = """
import itertools, sys
from llama_fast.train.checkpoints import CheckpointManager
from tests.train.test_checkpoints import tensors
checkpoints = CheckpointManager(sys.argv[1], keep_last=2)
for step in itertools.count(1):
    checkpoints.save(step, tensors(step), {"step": step}, asynchronous=bool(step % 2))
    print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 while checkpoints are written: the newest is complete, none is damaged."""
    draw = random.Random(0)
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        command = [sys.executable, "-W", "ignore", "-c", SAVE_FOR_EVER, str(folder)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        last = [child.stdout.readline() for _ in range(2)][-1]
        time.sleep(draw.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        last = [last, *rest.splitlines()][-1]
        checkpoints = CheckpointManager(folder, keep_last=2, log=pytest.fail)
        found = checkpoints.latest()
        # An asynchronous save says its step before it is complete.
        assert found is not None and found.step >= int(last) - 1
        assert found.state == {"step": found.step}
        assert bits(loaded(checkpoints, found)) == bits(tensors(found.step))
        checkpoints.save(found.step + 1, tensors(), {})
        assert not list(folder.glob(".*"))


def rank_saves(rank: int, ranks: int, folder: str) -> None:
    """Sharded over `ranks` processes: write, or read what another number of them wrote."""
    dist.init_process_group("gloo", f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    whole = torch.arange(24.0).reshape(6, 4) / 7
    said: list[str] = []
    checkpoints = CheckpointManager(f"{folder}/c", log=said.append)
    if ranks == 2:
        shard = distribute_tensor(whole, mesh, [Shard(0)])
        checkpoints.save(1, {"w": shard}, {"ranks": 2}, asynchronous=True)
        checkpoints.save(2, {"w": shard}, {})
        Path(folder, "c/.step-00000003.partial").touch()  # in the way of rank 0
        with pytest.raises(RunCheckpointError) as failure:
            checkpoints.save(3, {"w": shard}, {})
        reason = "File exists" if rank == 0 else "rank 0 failed; see its error"
        assert reason in str(failure.value)
    else:
        mine = distribute_tensor(torch.zeros(6, 4), mesh, [Shard(1)])
        found = checkpoints.latest()
        assert found is not None and found.state == {"ranks": 2}
        assert len(said) == (1 if rank == 0 else 0)  # one rank reads it all for the others
        checkpoints.load(found, {"w": mine})
        assert isinstance(mine, DTensor) and torch.equal(mine.full_tensor(), whole)
    dist.destroy_process_group()


@pytest.mark.slow
def test_another_number_of_ranks(tmp_path: Path) -> None:
    """Written by 2 processes in rows, read by 3 in columns and by 1; the newest is damaged."""
    start(2, rank_saves, 2, str(tmp_path), method=FORKED)
    (tmp_path / "c/step-00000002/state.json").unlink()
    start(3, rank_saves, 3, str(tmp_path), method=FORKED)
    checkpoints = CheckpointManager(tmp_path / "c", log=lambda line: None)
    found, whole = checkpoints.latest(), torch.zeros(6, 4)
    assert found is not None
    checkpoints.load(found, {"w": whole})
    assert torch.equal(whole, torch.arange(24.0).reshape(6, 4) / 7)


def test_refusals(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path)
    with pytest.raises(ValueError, match="keep_last: expected a number >= 0, got -1"):
        CheckpointManager(tmp_path, keep_last=-1)
    with pytest.raises(ValueError, match="step: expected a number >= 0, got -1"):
        checkpoints.save(-1, {}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, tensors(), {"a": object()})
    checkpoints.save(1, tensors(), {})
    found = checkpoints.latest()
    assert found is not None
    with pytest.raises(RunCheckpointError, match="expected a tensor 'other', there is none"):
        checkpoints.load(found, {"other": torch.zeros(1)})
    with pytest.raises(RunCheckpointError, match=r"weight: expected shape \(3,\), got \(16, 12\)"):
        checkpoints.load(found, {"weight": torch.zeros(3)})
    (file,) = found.path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])  # after its hash was compared
    with pytest.raises(RunCheckpointError, match="step-00000001: could not be read"):
        loaded(checkpoints, found)


def test_a_thread_that_cannot_start_loses_nothing(tmp_path: Path) -> None:
    """If there is no memory for a thread, the checkpoint is written synchronously."""
    checkpoints = CheckpointManager(tmp_path / "c")
    before = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        checkpoints.save(3, tensors(3), {}, asynchronous=True)
    finally:
        threading.stack_size(before)
    checkpoints.wait()
    assert bits(loaded(checkpoints, checkpoints.latest())) == bits(tensors(3))


def test_a_save_takes_one_copy_of_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.checkpoint_memory", str(tmp_path)]
    environment = {**os.environ, **checkpoint_memory.ENVIRONMENT}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if "clear_refs cannot be written" in done.stderr:
        pytest.skip("this system does not tell the peak of a process")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    # The copy that later steps cannot change, and at most a tensor's worth of bytes besides.
    assert measured["weights"] <= measured["checkpoint"] <= 1.1 * measured["weights"]
    assert measured["export"] <= 0.1 * measured["weights"]


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    """The library reads every dtype and shape as it was written."""
    tensors = {
        str(dtype): torch.arange(6).reshape(shape).to(dtype)
        for dtype, shape in zip(DTYPES, [(6,), (2, 3), (1, 6), (3, 1, 2)] * 3, strict=False)
    }
    tensors |= {"none": torch.ones(0, 3), "scalar": torch.tensor(2.5), "t": torch.ones(3, 4).t()}
    written = write_safetensors(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    data = (tmp_path / "ours.safetensors").read_bytes()
    assert written == (hashlib.sha256(data).hexdigest(), len(data))
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with pytest.raises(TypeError, match=r"x: safetensors files do not have torch.complex64"):
        write_safetensors(tmp_path / "x", {"x": torch.ones(1, dtype=torch.complex64)}, {})
