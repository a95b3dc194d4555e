"""llama_fast._host: build facts and processor features. Packing: tests/data/test_bin_packing.py."""

import platform
from pathlib import Path

import pytest

_host = pytest.importorskip("llama_fast._host", reason="host module not built")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 flags")
def test_processor_features_agree_with_the_kernel() -> None:
    flags = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
            break
    features = _host.cpu_features()
    assert features and all(isinstance(v, bool) for v in features.values())
    assert features == {name: name in flags for name in features}


def test_build_info_names_the_compiler() -> None:
    info = _host.build_info()
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert int(info["cxx_standard"]) >= 201703
    assert info["architecture"] == platform.machine()
