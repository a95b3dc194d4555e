"""Energy that the machine's own counters saw, or nothing: never an estimate.

GPUs: NVML's counter since the driver was loaded (Volta and later). CPUs: Intel's and AMD's RAPL,
which Linux shows as files (kernel documentation, power/powercap); most systems let only root read
them. What else runs on the same processor or GPU is counted too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")


class RaplMeter:
    """Joules of the processors, and of the memory where it has a counter of its own.

    Args:
        folder: with an ``intel-rapl:N`` folder for each domain.

    Attributes:
        source: what is counted, in words.

    Raises:
        OSError: there is no counter, or it may not be read.
    """

    def __init__(self, folder: str | os.PathLike[str] = POWERCAP) -> None:
        self._files: list[Path] = []
        self._ranges: list[int] = []
        names = []
        for domain in sorted(Path(folder).glob("intel-rapl:*")):
            name = (domain / "name").read_text().strip()
            # `core` and `uncore` are parts of a package, and `psys` holds the packages.
            if name.startswith("package") or name == "dram":
                self._files.append(domain / "energy_uj")
                self._ranges.append(int((domain / "max_energy_range_uj").read_text()))
                names.append(name)
        if not names:
            raise FileNotFoundError(f"{folder}: no RAPL counter")
        self.source = f"RAPL, {' and '.join(dict.fromkeys(names))}"
        self._last = self._read()
        self._total = 0

    def _read(self) -> list[int]:
        return [int(file.read_text()) for file in self._files]

    def joules(self) -> float:
        """Energy since the meter was made.

        Counters begin again at their range (minutes under load): ask more often than that.
        """
        now = self._read()
        for new, old, most in zip(now, self._last, self._ranges, strict=True):
            self._total += new - old if new >= old else new + most - old
        self._last = now
        return self._total / 1e6


class NvmlMeter:
    """Joules of one GPU.

    Args:
        device: of torch; found by its UUID, so CUDA_VISIBLE_DEVICES does not matter.

    Attributes:
        source: what is counted, in words.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: no driver, or a GPU without a counter.
    """

    def __init__(self, device: torch.device) -> None:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._nvml: Any = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._begin = self._millijoules()
        self.source = f"NVML, {torch.cuda.get_device_name(device)}"

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def joules(self) -> float:
        """Energy since the meter was made."""
        return (self._millijoules() - self._begin) / 1e3


def find_meter(
    device: torch.device, powercap: str | os.PathLike[str] = POWERCAP
) -> RaplMeter | NvmlMeter | None:
    """What measures the energy of work on a device; None where nothing does."""
    if device.type == "cuda":
        try:
            return NvmlMeter(device)
        except Exception:  # NVML's errors are classes of a package that may not be there
            return None
    try:
        return RaplMeter(powercap)
    except (OSError, ValueError):
        return None
