"""RAPL counters as Linux has them, in a temporary folder."""

from __future__ import annotations

from pathlib import Path

RANGE = 262_143_328_850  # of a Xeon: 262 kJ


def domain(folder: Path, number: str, name: str, microjoules: int) -> Path:
    """Write the files of a counter; return the file of its value."""
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def count(counter: Path, microjoules: int) -> None:
    """Advance a counter."""
    counter.write_text(f"{int(counter.read_text()) + microjoules}\n")
