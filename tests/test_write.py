"""What a received folder has in the way of our files: links are replaced, never written through."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_fast import _lock
from llama_fast._lock import hold
from llama_fast._write import open_own, replacing, save_picture, sweep, write_whole
from llama_fast.eval.report.results import write_run
from llama_fast.models import LLaMA, LlamaConfig, save
from llama_fast.train.checkpoints import CheckpointManager
from llama_fast.train.metrics import MetricsFile, StepMetrics, read_metrics
from llama_fast.train.record import add_entry

STEP = StepMetrics(1, 8, 8, 1.0, 1.0, 1e-3, 1.0)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file that links in a received folder lead to."""
    file = tmp_path / "bashrc"
    file.write_text("precious")
    return file


@pytest.fixture
def folder(tmp_path: Path, precious: Path) -> Path:
    """A received folder with a link under each name that was ever written to."""
    folder = tmp_path / "got"
    folder.mkdir()
    names = ["results.json", "samples_a.jsonl", "run.json", "metrics.csv", "report.html", "x.png"]
    for name in names:
        (folder / name).symlink_to(precious)
        for partial in (f"{name}.partial", Path(name).stem + ".partial", f".{name}.partial",
                        f".{name}.{os.getpid()}.partial"):  # fmt: skip
            if not (folder / partial).is_symlink():
                (folder / partial).symlink_to(precious)
    return folder


def write_results(folder: Path) -> None:
    sample = {"doc_hash": "1", "prompt_hash": "2", "target_hash": "3", "arguments": [],
              "resps": [], "filtered_resps": [], "target": ""}  # fmt: skip
    write_run(folder, {"results": {"a": {}}, "samples": {"a": [sample]}})


def write_metrics(folder: Path) -> None:
    (folder / "metrics.csv").unlink()  # to read one is another matter: it is refused
    file = MetricsFile(folder / "metrics.csv", 0)
    file.add(STEP)
    file.close()
    assert read_metrics(folder / "metrics.csv") == [STEP]


def write_record(folder: Path) -> None:
    (folder / "run.json").unlink()
    add_entry(folder, {})


def write_plot(folder: Path) -> None:
    from matplotlib.figure import Figure

    save_picture(Figure(), folder / "x.png")
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")


def write_model(folder: Path) -> None:
    (folder.parent / f".m.gguf.{os.getpid()}.partial").symlink_to(folder.parent / "bashrc")
    save(LLaMA(LlamaConfig.preset("debug")), folder.parent / "m.gguf", to="gguf")


@pytest.mark.parametrize(
    "write", [write_results, write_metrics, write_record, write_plot, write_model]
)
def test_links_are_not_followed(write: Any, folder: Path, precious: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    write(folder)
    assert precious.read_text() == "precious"
    assert {path.name for path in folder.iterdir()} <= before, "a partial file is left"


def test_a_record_or_metrics_that_are_a_link(folder: Path, precious: Path) -> None:
    precious.write_text(json.dumps({"id": "private", "starts": []}))
    with pytest.raises(ValueError, match=r"run\.json.*not in the folder"):
        add_entry(folder, {})
    assert "private" in precious.read_text()


def test_a_lock_that_is_a_link(folder: Path, precious: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for target in (precious, new):
        (folder / ".lock").symlink_to(target)
        with pytest.raises(OSError, match=r"\.lock: expected a regular file or none"):
            hold(folder)
        (folder / ".lock").unlink()
    assert precious.read_text() == "precious" and not new.exists()
    os.mkfifo(folder / ".lock")
    with pytest.raises(OSError, match="expected a regular file or none"):
        hold(folder)
    (folder / ".lock").unlink()
    hold(folder)


def test_a_link_that_comes_at_the_last_moment(
    folder: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system itself refuses it, not only the look before."""
    (folder / "late").symlink_to(precious)
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(OSError) as caught:
        open_own(folder / "late", os.O_RDWR | os.O_CREAT)
    assert caught.value.errno == errno.ELOOP


def test_a_killed_runs_partial_files_go(folder: Path, precious: Path) -> None:
    left = folder / f".results.json.{'0f' * 8}.partial"
    left.write_text("half")
    linked = folder / f".samples.{'1e' * 8}.partial"
    linked.symlink_to(precious)
    (folder / "mine.partial").write_text("kept")
    while _lock._held:
        _lock._held.popitem()[1].close()
    hold(folder)
    assert not left.exists() and not linked.is_symlink() and (folder / "mine.partial").exists()
    assert precious.read_text() == "precious"


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as file:
        file.write("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_whole(tmp_path / "ours", "text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_threads_write_one_file(tmp_path: Path) -> None:
    def write(text: str) -> None:
        for _ in range(20):
            write_whole(tmp_path / "a", text * 1000)

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set((tmp_path / "a").read_text()) in ({"a"}, {"b"})
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_checkpoints_that_are_a_link_to_another_runs(tmp_path: Path) -> None:
    """To go on in a received folder would delete the other run's."""
    mine = CheckpointManager(tmp_path / "mine/checkpoints")
    mine.save(1, {"w": torch.zeros(2)}, {})
    (tmp_path / "got").mkdir()
    (tmp_path / "got/checkpoints").symlink_to(tmp_path / "mine/checkpoints")
    with pytest.raises(OSError, match="expected a folder, got a link to"):
        CheckpointManager(tmp_path / "got/checkpoints", keep_last=1).save(
            2, {"w": torch.zeros(2)}, {}
        )
    assert mine.latest() is not None


def test_a_trace_does_not_follow_a_link(tmp_path: Path, precious: Path) -> None:
    from llama_fast.train.profiling import TRACE, WARMUP, Profiler

    (tmp_path / TRACE).symlink_to(precious)
    profiler = Profiler(tmp_path, 1, False, lambda line: None)
    for _ in range(WARMUP + 1):
        torch.zeros(2).add(1)
        profiler.step()
    profiler.close()
    assert precious.read_text() == "precious"
    assert (tmp_path / TRACE).read_bytes()[:2] == b"\x1f\x8b"
    assert {path.name for path in tmp_path.iterdir()} == {TRACE, "bashrc"}
