"""Energy meters, on RAPL files as Linux has them in a temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_fast._energy import RaplMeter, energy_text, find_meter
from tests.powercap import RANGE, domain


def test_packages_and_memory_count_once(tmp_path: Path) -> None:
    """Cores are part of a package, and psys includes everything."""
    counters = [
        domain(tmp_path, "0", "package-0", 10_000_000),
        domain(tmp_path, "1", "package-1", 20_000_000),
        domain(tmp_path, "0:0", "dram", 30_000_000),
        domain(tmp_path, "0:1", "core", 40_000_000),
        domain(tmp_path, "2", "psys", 50_000_000),
    ]
    domain(tmp_path / "intel-rapl", "x", "package-0", 0)  # the driver's own folder: no domain
    meter = RaplMeter(tmp_path)
    assert meter.joules() == 0
    for counter in counters:
        counter.write_text(f"{int(counter.read_text()) + 1_500_000}\n")
    assert meter.joules() == pytest.approx(4.5)
    assert meter.joules() == pytest.approx(4.5)
    assert meter.source == "RAPL, package-0 and dram and package-1"


def test_counters_wrap_around(tmp_path: Path) -> None:
    counter = domain(tmp_path, "0", "package-0", RANGE - 2_000_000)
    meter = RaplMeter(tmp_path)
    counter.write_text("1000000\n")
    assert meter.joules() == pytest.approx(3.0)
    counter.write_text("500000\n")  # once round
    assert meter.joules() == pytest.approx(3.0 + RANGE / 1e6 - 0.5)


def test_no_meter_without_readable_counters(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert find_meter(cpu, tmp_path / "nowhere") is None
    counter = domain(tmp_path, "0", "package-0", 0)
    assert find_meter(cpu, tmp_path) is not None
    counter.unlink()
    counter.mkdir()  # an error at reading, for root too
    assert find_meter(cpu, tmp_path) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_has_no_meter() -> None:
    assert find_meter(torch.device("cuda")) is None


def test_energy_as_text(tmp_path: Path) -> None:
    domain(tmp_path, "0", "package-0", 0)
    meter = RaplMeter(tmp_path)
    assert energy_text(None, 0.0, 10, 2, "prompt") == "not measurable"
    found = energy_text(meter, 8.0, 500, 4, "question")
    assert found == "16 J per 1,000 tokens, 2 J per question (RAPL, package-0)"
    assert energy_text(meter, 8.0, 0, 4, "question") == "2 J per question (RAPL, package-0)"
