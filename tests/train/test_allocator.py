"""Freed memory is kept for the next step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from llama_fast.train.allocator import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else None
import torch
def step():
    # 40 MB each: glibc maps every piece over 32 MB by itself, whatever it
    # has learned from the ones before.
    return [torch.ones(10 << 20) for _ in range(4)]
for _ in range(5):  # until the heap has a place for each piece
    step()
begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    # Ordinary pages, so that there is a fault for each.
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", **environment}
    command = [sys.executable, "-c", STEPS, how]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, number = said.stdout.split()
    return kept, int(number)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: glibc is asked for")
def test_pages_are_faulted_in_once() -> None:
    kept, few = faults("keep")
    if kept == "False":
        pytest.skip("needs Linux with glibc")
    _, many = faults("as it is")
    assert few < many / 100


def test_settings_in_the_environment_win() -> None:
    kept, _ = faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"
