"""What the compiled library says of itself and of the processor."""

import json
import platform
from pathlib import Path

import pytest
import torch

from llama_fast.ops.backends import library

pytestmark = pytest.mark.skipif(library.missing_reason is not None, reason="nothing was compiled")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 flags")
def test_processor_features_agree_with_the_kernel() -> None:
    flags = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
            break
    features = json.loads(torch.ops.llama_fast.cpu_features())
    assert features and all(isinstance(v, bool) for v in features.values())
    assert features == {name: name in flags for name in features}


def test_build_info_names_the_compiler() -> None:
    info = json.loads(torch.ops.llama_fast.build_info())
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert int(info["cxx_standard"]) >= 201703
    assert info["architecture"] == platform.machine()
