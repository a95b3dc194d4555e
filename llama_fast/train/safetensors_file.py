"""Writes safetensors files tensor by tensor, so that no second copy of the weights is in memory.

The format is described at https://huggingface.co/docs/safetensors: 8 bytes with the length of the
header, the header as JSON, and the bytes of the tensors without gaps. `safetensors.torch.save_file`
collects the bytes of all tensors before it writes the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# The format's name of each dtype.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # of the first tensor, so that a memory map needs no copy
# Pages that have been written but wait in the cache are sent to the disk after this many bytes:
# otherwise they take the place of other memory, and all of the waiting comes at the end.
_SYNC_BYTES = 64 << 20


class WrittenFile(NamedTuple):
    """What was written.

    Attributes:
        sha256: the file's hash in hexadecimal digits.
        bytes: the file's size.
    """

    sha256: str
    bytes: int


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> WrittenFile:
    """Write a safetensors file and return its hash and size, computed on the way.

    Only one tensor at a time is in memory besides `tensors`, and that only if it is not contiguous
    or not in CPU memory.

    Args:
        path: path of the file; an existing one is replaced.
        tensors: name -> tensor of any shape, on any device, in a dtype of the format.
        metadata: strings that are saved with them.

    Raises:
        TypeError: a tensor has a dtype that the format does not have.
        OSError: the file could not be written; a part of it may be there.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: safetensors files do not have {tensor.dtype}")
    # Large elements first: then each tensor is aligned to its element.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest, size, unsynced = hashlib.sha256(), 0, 0
    with open(path, "wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little"), text, *map(tensors.__getitem__, names)):
            data = memoryview(part) if isinstance(part, bytes) else _bytes_of(part)
            for start in range(0, len(data), _SYNC_BYTES):
                piece = data[start : start + _SYNC_BYTES]
                digest.update(piece)
                written = 0
                while written < len(piece):
                    written += file.write(piece[written:])
                size, unsynced = size + len(piece), unsynced + len(piece)
                if unsynced >= _SYNC_BYTES:
                    os.fdatasync(file.fileno())
                    unsynced = 0
    return WrittenFile(digest.hexdigest(), size)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor in memory order, not copied if it is contiguous in CPU memory."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
