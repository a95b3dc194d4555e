"""`llama-fast bench` from end to end, on a selection that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama_fast.cli import main as cli


def bench(*arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "llama_fast", "bench", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_measures_and_writes_everything(tmp_path: Path) -> None:
    done = bench(
        *("--quick", "--op", "swiglu", "--op=cross_entropy", "--baselines", "torch,quack"),
        *("--case", "float32", "--out", str(tmp_path)),
        THP_MEM_ALLOC_ENABLE="1",  # (without it the command starts itself again, as below)
    )
    (path,) = tmp_path.glob("cpu-*.json")
    found = json.loads(path.read_text())
    assert found["settings"]["rounds"] == 3 and found["settings"]["huge_pages"] is True
    assert "THP_MEM_ALLOC_ENABLE=1" in done.stdout
    assert set(found["limits"]) == {"gemm float32", "gemm bfloat16", "read", "copy"}
    assert all(rate > 1e8 for rate in found["limits"].values())
    assert found["machine"]["versions"]["torch"] == torch.__version__
    ops = [result["case"]["op"] for result in found["results"]]
    assert set(ops) == {"swiglu", "cross_entropy"}
    for result in found["results"]:
        names = [side["implementation"] for side in result["sides"]]
        assert names == ["llama_fast", "torch"]
        for side in result["sides"]:
            assert side["reason"] is None and len(side["samples_ms"]) == 3
            assert side["min_ms"] <= side["median_ms"] and side["percent_of_limit"] > 0
            assert side["difference"] < 1e-4
            assert side["extra_bytes"] is not None or side["extra_reason"]
        assert result["sides"][0]["ratio_to_ours"] == 1.0
    assert "quack is missing: runs on cuda only" in done.stdout
    page = path.with_suffix(".md").read_text()
    assert page.count("\n| cross_entropy |") == ops.count("cross_entropy")
    for picture in ("speedup", "limits"):
        drawn = path.with_name(f"{path.stem}-{picture}.png")
        assert drawn.stat().st_size > 10_000 and drawn.name in done.stdout.replace("\n", "")
        drawn.unlink()
    again = bench("--from", str(path), "--out", str(tmp_path / "again"), "--json")
    assert json.loads(again.stdout) == found and "cross_entropy" in again.stderr
    assert (tmp_path / "again" / path.name).read_text() == path.read_text()
    assert (tmp_path / "again" / f"{path.stem}-speedup.png").exists()


def test_trains_a_side_in_a_process_of_its_own(tmp_path: Path) -> None:
    bench(
        *("--quick", "--op", "llama_training", "--baselines", "transformers", "--case", "float32"),
        *("--rounds", "2", "--huge-pages", "off", "--out", str(tmp_path)),
        THP_MEM_ALLOC_ENABLE="1",
    )
    (path,) = tmp_path.glob("cpu-*.json")
    found = json.loads(path.read_text())
    assert found["settings"]["huge_pages"] is False
    (result,) = found["results"]
    assert [side["implementation"] for side in result["sides"]] == ["llama_fast", "transformers"]
    for side in result["sides"]:
        assert side["tokens_per_second"] > 0 and side["difference"] < 0.05
        assert side["extra_bytes"] is not None or side["extra_reason"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--op", "atention"],
            "--op: expected names among attention, attention_decode, cross_entropy",
        ),
        (["--baselines", "torch,torhc"], "--baselines: expected names among llama_fast, torch"),
        (["--case", "S=3"], "--case: expected words"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "--device: expected cpu, as torch finds no GPU here" in capsys.readouterr().err


def test_list_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list", "--op", "rope", "--baselines", "torch,flash-attn"]) == 0
    text = capsys.readouterr().out
    assert "rope B=4 H=16 S=1024 D=64 bfloat16 forward+backward" in text
    assert "missing: runs on cuda only" in text


def test_suite_outside_the_checkout(tmp_path: Path) -> None:
    # A folder of the same name, as someone else's project may have one, must not be taken for it.
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [sys.executable, "-m", "llama_fast", "bench", "--list", "--op", "rope"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "rope" in done.stdout, done.stderr
