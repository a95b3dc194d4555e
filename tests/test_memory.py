"""Memory of this process."""

import subprocess
import sys

import pytest

from llama_fast._memory import reset_peak_rss

# In a process of its own: another test may have this one keep what is freed (train/allocator.py).
PEAK = """
import torch
from llama_fast._memory import peak_rss, reset_peak_rss
reset_peak_rss()
before = peak_rss()
block = torch.ones(25_000_000, dtype=torch.float64)  # 200 MB, all written
del block
most = peak_rss() - before
reset_peak_rss()
print(most, peak_rss() - before)
"""


@pytest.mark.skipif(not reset_peak_rss(), reason="needs Linux: /proc/self/clear_refs")
def test_peak_counts_what_was_there_and_is_gone() -> None:
    out = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    most, after = map(int, out.stdout.split())
    assert 195e6 < most < 260e6
    assert after < 60e6
