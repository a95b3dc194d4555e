"""Measures energy with the machine's counters; it is never estimated.

GPUs: the counter of NVML (Volta and later). CPUs: RAPL of Intel and AMD, which Linux provides as
files (kernel documentation, power/powercap) that on most systems only root can read. The counters
include the energy of all other programs on the same processor or GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

NOT_MEASURABLE = "not measurable"  # printed where there is no readable counter
POWERCAP = Path("/sys/class/powercap")


class RaplMeter:
    """Measures the energy of the processors, and of the memory if it has its own counter.

    Args:
        folder: folder with a subfolder ``intel-rapl:N`` for each domain.

    Attributes:
        source: description of the counters.

    Raises:
        OSError: there is no counter, or it is not readable.
    """

    def __init__(self, folder: str | os.PathLike[str] = POWERCAP) -> None:
        self._files: list[Path] = []
        self._ranges: list[int] = []
        names = []
        for domain in sorted(Path(folder).glob("intel-rapl:*")):
            name = (domain / "name").read_text().strip()
            # `core` and `uncore` are parts of a package, and `psys` includes the packages.
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
        """Energy since the meter was created, in joules.

        Call it at least once a minute: the counters wrap around, within minutes under load.
        """
        now = self._read()
        for new, old, period in zip(now, self._last, self._ranges, strict=True):
            self._total += new - old if new >= old else new + period - old
        self._last = now
        return self._total / 1e6


class NvmlMeter:
    """Measures the energy of one GPU.

    Args:
        device: a torch device; found by its UUID, so CUDA_VISIBLE_DEVICES does not matter.

    Attributes:
        source: description of the counter.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: there is no driver, or the GPU has no counter.
    """

    def __init__(self, device: torch.device) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._nvml: Any = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._begin = self._millijoules()
        self.source = f"NVML, {torch.cuda.get_device_name(device)}"

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def joules(self) -> float:
        """Energy since the meter was created, in joules."""
        return (self._millijoules() - self._begin) / 1e3


EnergyMeter: TypeAlias = RaplMeter | NvmlMeter


def find_meter(
    device: torch.device, powercap: str | os.PathLike[str] | None = None
) -> EnergyMeter | None:
    """Create the energy meter of a device; None if it has no readable counter.

    Args:
        device: the device that computes.
        powercap: folder of the processors' counters; None for that of Linux.
    """
    if device.type == "cuda":
        try:
            return NvmlMeter(device)
        except Exception:  # the classes of NVML's errors are in a package that may not be installed
            return None
    try:
        return RaplMeter(POWERCAP if powercap is None else powercap)
    except (OSError, ValueError):
        return None


def energy_text(
    meter: EnergyMeter | None, joules: float, tokens: int, count: int, what: str
) -> str:
    """Return energy per 1,000 tokens and per prompt or question as text.

    Args:
        meter: the meter that measured it, or None.
        joules: the energy.
        tokens: number of tokens it was used for; 0 leaves them out.
        count: number of prompts or questions, at least 1.
        what: what these are, in the singular.
    """
    if meter is None:
        return NOT_MEASURABLE
    per_tokens = f"{joules / tokens * 1000:,.3g} J per 1,000 tokens, " if tokens else ""
    return f"{per_tokens}{joules / count:,.3g} J per {what} ({meter.source})"
