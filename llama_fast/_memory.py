"""Resident set size (RSS) of this process, in bytes."""

import resource
import sys
from pathlib import Path

__all__ = ["peak_rss", "reset_peak_rss", "rss"]

_STATUS = Path("/proc/self/status")


def rss() -> int:
    """The current resident set size; 0 if the system does not report it (no /proc).

    Returns:
        The size in bytes.
    """
    return _status("VmRSS:") or 0


def peak_rss() -> int:
    """The largest :func:`rss` since :func:`reset_peak_rss`, else since the process started.

    Returns:
        The size in bytes.
    """
    peak = _status("VmHWM:")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak_rss() -> bool:
    """Restart the measurement of :func:`peak_rss`; return whether that is possible (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None if there is no such file or field."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
