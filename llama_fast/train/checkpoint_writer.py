"""Writes the tensors of a checkpoint from memory to the disk without another copy of them.

`torch.distributed.checkpoint` decides which rank writes what. Its own writer for safetensors
makes the bytes of a whole file in memory, twice; this one writes them tensor by tensor.
"""

from __future__ import annotations

import json
import os
from typing import Any

from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from llama_fast.train.safetensors_file import WrittenFile, write_safetensors


class StreamingWriter(HuggingFaceStorageWriter):
    """Writes one safetensors file per rank, in the format of `HuggingFaceStorageReader`.

    Args:
        folder: existing folder of the files.

    Attributes:
        files: after a save, on rank 0: name of each file -> its hash and size.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder = str(folder)
        self.files: dict[str, WrittenFile] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors."""
        future: Future[list[WriteResult]] = Future()
        if not plan.items:
            future.set_result([])
            return future
        tensors, offsets = {}, {}
        for item in plan.items:
            tensors[item.index.fqn] = planner.resolve_data(item)
            offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        name = f"shard-{plan.storage_data['shard_index']:05}-model-00001-of-00001.safetensors"
        metadata = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
        written = write_safetensors(os.path.join(self._folder, name), tensors, metadata)
        # What a result holds of its file goes to rank 0, whose `finish` reads it.
        sizes = (t.numel() * t.element_size() for t in tensors.values())
        future.set_result(
            [
                WriteResult(index=item.index, size_in_bytes=size, storage_data=(name, written))
                for item, size in zip(plan.items, sizes, strict=True)
            ]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> Any:
        """Collect the hashes; there is no index, because names are in several files."""
        self.files = dict(result.storage_data for of_rank in results for result in of_rank)
