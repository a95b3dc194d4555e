"""Resident set size (RSS) of this process, in bytes."""

import resource
import sys
from pathlib import Path

__all__ = ["peak_rss", "reset_peak_rss", "rss"]

_STATUS = Path("/proc/self/status")


def rss() -> int:
    """Memory of this process that is in RAM now; 0 where the system does not report it (no /proc).

    Returns:
        bytes.
    """
    return _status("VmRSS:") or 0


def peak_rss() -> int:
    """The largest :func:`rss` since :func:`reset_peak_rss`, or else since the process started.

    Returns:
        bytes.
    """
    peak = _status("VmHWM:")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak_rss() -> bool:
    """Make :func:`peak_rss` count from now on; return whether the system can (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes, None where there is no such file or field."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
