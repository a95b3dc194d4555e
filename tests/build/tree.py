"""A small source tree with the real build files, for tests that compile and install."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DISPATCH = """
#include "cpu/kernel.h"
extern "C" __attribute__((visibility("default"))) int llama_fast_sum_of_kernels() {
  int sum = 0;
#ifdef LLAMA_FAST_HAVE_PORTABLE
  sum += portable_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_NEON
  sum += neon_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_NEON_BF16
  sum += neon_bf16_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AVX2
  sum += avx2_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AVX512
  sum += avx512_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AVX512_BF16
  sum += avx512_bf16_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AMX_BF16
  sum += amx_bf16_kernel();
#endif
  return sum;
}
"""
# Each copy says which instruction sets it was compiled for.
KERNEL = """
#include "cpu/kernel.h"
#define JOIN(a, b) a##_##b
#define NAME(isa) JOIN(isa, kernel)
int NAME(LLAMA_FAST_ISA)() {
#if defined(__AMX_BF16__)
  return 10000;
#elif defined(__AVX512BF16__)
  return 1000;
#elif defined(__AVX512F__)
  return 100;
#elif defined(__AVX2__)
  return 10;
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return 10;
#else
  return 1;
#endif
}
"""
HEADER = """
int portable_kernel();
int neon_kernel();
int neon_bf16_kernel();
int avx2_kernel();
int avx512_kernel();
int avx512_bf16_kernel();
int amx_bf16_kernel();
"""
OPS = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
extern "C" __attribute__((visibility("default"))) int llama_fast_cpu_device() {
  return aoti_torch_device_type_cpu();
}
"""
CUDA_KERNEL = """
__global__ void add_one(float* x) { x[threadIdx.x] += 1.0f; }
extern "C" __attribute__((visibility("default"))) void llama_fast_launch(float* x) {
  add_one<<<1, 32>>>(x);
}
"""


class Tree:
    """A copy of the build files with small C++ sources."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("setup.py", *(p.name for p in ROOT.glob("build_*.py")), "pyproject.toml"):
            shutil.copy(ROOT / name, root / name)
        (root / "README.md").write_text("A small tree.")
        for name in ("LICENSE", "THIRD_PARTY.md"):
            (root / name).write_text("")
        (root / "llama_fast").mkdir()
        (root / "llama_fast" / "__init__.py").write_text("")
        shutil.copy(ROOT / "llama_fast" / "_version.py", root / "llama_fast")
        for folder in ("kernels", "benchmarks"):
            shutil.copytree(ROOT / folder, root / folder)
        (root / "csrc").mkdir()
        for name in ("exports.map", "old_glibc.h"):
            shutil.copy(ROOT / "csrc" / name, root / "csrc")
        self.write("ops.cpp", OPS)
        self.write("cpu/dispatch.cpp", DISPATCH)
        self.write("cpu/kernel.cpp", KERNEL)
        self.write("cpu/kernel.h", HEADER)
        self.library = root / "llama_fast" / "libllama_fast.so"

    def write(self, path: str, text: str) -> None:
        """A file under csrc/."""
        (self.root / "csrc" / path).parent.mkdir(exist_ok=True)
        (self.root / "csrc" / path).write_text(text)

    def build(self, expect: int = 0, **environment: str) -> str:
        """Output of `setup.py build_ext --inplace`, which has to end with code `expect`."""
        env = {k: v for k, v in os.environ.items() if k == "PATH" or not k.startswith("LLAMA_FAST")}
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.root,
            env={**env, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def part(self, name: str) -> tuple[bool, str]:
        """What _build.json says of a part: built, and what or why not."""
        facts = json.loads((self.root / "llama_fast" / "_build.json").read_text())
        return facts["parts"][name]["built"], facts["parts"][name]["detail"]
