"""Resident memory of this process, in bytes."""

import resource
import sys
from pathlib import Path

__all__ = ["peak", "reset_peak", "resident"]

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Memory of this process that is in RAM now; 0 where the system does not tell (not Linux)."""
    return _status("VmRSS:") or 0


def peak() -> int:
    """The most memory that was in RAM at once since :func:`reset_peak`, or else since the start."""
    high = _status("VmHWM:")
    if high is not None:
        return high
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak() -> bool:
    """Starts :func:`peak` afresh (Linux); False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
