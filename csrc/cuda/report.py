"""Compiles the CUDA kernels, without a GPU, and reports the resources that they use.

    python csrc/cuda/report.py [OP...] [--arch 90a]        (`make gpu-compile`)

For each kernel and architecture: registers, spilled bytes, stack and static shared memory, as the
assembler reports them. A file that does not compile and a kernel that spills are errors.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from build_backend import CannotBuild  # noqa: E402
from build_cuda import CUDA_ARCHITECTURES, find_nvcc, gencode  # noqa: E402

# Uses everything in device.h, whether an op needs it or not.
PRIMITIVES = FOLDER.parents[1] / "tests" / "cuda" / "emulation.cpp"
# Resources of one kernel in the output of `nvcc -Xptxas -v`.
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, "
    r"(?P<loaded>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass
class Kernel:
    """The resources of a kernel, as the assembler reports them."""

    name: str
    arch: str
    registers: int
    stack: int
    spilled: int
    shared: int

    def line(self) -> str:
        """A row of the table."""
        failed = "  FAILED: spills" if self.spilled else ""
        return (
            f"{self.arch:<7}{self.registers:>4} registers {self.spilled:>5} spilled "
            f"{self.stack:>5} stack {self.shared:>6} shared  {self.name}{failed}"
        )


def compile_one(nvcc: Path, source: Path, arch: str) -> list[Kernel] | str:
    """The kernels of a file, or the error of the compiler."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(nvcc), "-std=c++17", "-O3", f"-I{FOLDER.parent}", "-cubin", "-Xptxas=-v"]
        command += [*gencode(arch), "-x", "cu", str(source)]
        run = subprocess.run(
            [*command, "-o", f"{folder}/kernels.cubin"], capture_output=True, text=True
        )
    if run.returncode:
        return run.stdout + run.stderr
    matches = list(KERNEL.finditer(run.stdout + run.stderr))
    names = readable([match["name"] for match in matches])
    kernels = []
    for match, name in zip(matches, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spilled = int(match["stored"]) + int(match["loaded"])
        numbers = int(match["registers"]), int(match["stack"]), spilled
        kernels.append(
            Kernel(
                f"{source.stem}.{name}", match["arch"], *numbers, int(shared[1]) if shared else 0
            )
        )
    return kernels


def readable(names: list[str]) -> list[str]:
    """Demangled C++ names without namespaces and arguments; unchanged where c++filt is missing."""
    try:
        run = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return names
    plain = [re.sub(r"llama_fast::|cuda::|\(anonymous namespace\)::|^void ", "", line)
             for line in run.stdout.splitlines()]  # fmt: skip
    return [name.partition("(")[0] for name in plain]


def main() -> int:
    """Compile everything; returns 1 if a file does not compile or a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("op", nargs="*", help="only these (default: all that have kernels)")
    parser.add_argument("--arch", action="append", choices=CUDA_ARCHITECTURES, default=None)
    parser.add_argument("--quiet", action="store_true", help="print failures and the summary only")
    parser.add_argument(
        "--defaults",
        action="store_true",
        help="has no effect (kernels/_compile.py has such an option)",
    )
    arguments = parser.parse_args()
    try:
        nvcc = find_nvcc()
    except CannotBuild as reason:
        print(f"CUDA kernels left out: {reason}")
        return 0

    begin = time.monotonic()
    sources = sorted(FOLDER.glob("*.cu"))
    if arguments.op:
        sources = [source for source in sources if source.stem in arguments.op]
    else:
        sources.append(PRIMITIVES)
    todo = [(s, arch) for s in sources for arch in arguments.arch or CUDA_ARCHITECTURES]
    count = failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_one, nvcc, source, arch) for source, arch in todo]
        for (source, arch), job in zip(todo, jobs, strict=True):
            result = job.result()
            if isinstance(result, str):
                print(f"{source.name} for sm_{arch}: does not compile\n{result}", flush=True)
                failed += 1
                continue
            for kernel in result:
                count += 1
                failed += kernel.spilled > 0
                if kernel.spilled or not arguments.quiet:
                    print(kernel.line(), flush=True)
    seconds = time.monotonic() - begin
    print(f"{count} CUDA kernels of {len(sources)} files in {seconds:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
