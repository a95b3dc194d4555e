"""Messages over pipes: the length in 8 bytes, then the content."""

from __future__ import annotations

import os

__all__ = ["FormatError", "read_frame", "write_frame"]


class FormatError(ValueError):
    """A message violates the format or its limits."""


def read_frame(handle: int, limit: int | None = None) -> bytes | None:
    """The next message; None at the end. Reads no byte beyond it.

    Raises:
        FormatError: the message is longer than ``limit``.
    """
    head = _exactly(handle, 8)
    if head is None:
        return None
    length = int.from_bytes(head, "little")
    if limit is not None and length > limit:
        raise FormatError(f"a message of {length} bytes")
    return _exactly(handle, length)


def write_frame(handle: int, data: bytes) -> None:
    """Write a message."""
    data = len(data).to_bytes(8, "little") + data
    while data:
        data = data[os.write(handle, data) :]


def _exactly(handle: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(handle, min(count - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
