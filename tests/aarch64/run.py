"""Runs a selection of the op tests for 64-bit Arm under QEMU, on a processor of each kind.

python tests/aarch64/run.py [arguments for pytest]      (`make test-aarch64`)

Paths among the arguments replace the selection: `tests/ops` is all of them. The emulator is a few
dozen times slower than a processor, so the selection has each kernel, dtype and instruction, but
not each combination of options.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / "build" / "aarch64-env"

# QEMU's processors, and the instruction set that has to be chosen there. torch's own wheels need
# instructions of Armv8.2: on a Cortex-A57 or A72 they end with an illegal instruction.
PROCESSORS = {"max": "neon_bf16", "neoverse-n1": "neon"}
SELECTION = [
    "tests/ops/test_attention.py",
    "tests/ops/test_attention_decode.py",
    "tests/ops/test_cross_entropy.py::test_shapes",
    "tests/ops/test_linear.py",
    "tests/ops/test_linear_cross_entropy.py::test_grid",
    "tests/ops/test_rms_norm.py",
    "tests/ops/test_rope.py",
    "tests/ops/test_swiglu.py",
    "tests/ops/test_determinism.py",
]
# The reference and torch's own backend are the same on every processor.
OPTIONS = ["-m", "not slow and not compile and not gpu", "-k", "not reference and not torch-"]
NAME = "from llama_fast.ops.backends import library; print(library.isa())"


def python(processor: str, *arguments: str, capture: bool = False) -> tuple[int, str]:
    """Exit status and output of the emulated Python in the copy of the project."""
    done = subprocess.run(
        [str(HOME / "bin" / "python"), *arguments],
        cwd=HOME / "tree",
        # Waiting threads of OpenMP sleep: an emulated one would take a processor's time.
        env={**os.environ, "QEMU_CPU": processor, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE if capture else None,
        text=True,
    )
    return done.returncode, (done.stdout or "").strip()


def main() -> None:
    """Ends with 1 if tests fail, or another instruction set is chosen, on any processor."""
    arguments = sys.argv[1:]
    selection = [] if any(a.startswith("tests/") for a in arguments) else SELECTION
    failed = []
    for processor, expected in PROCESSORS.items():
        begin = time.monotonic()
        _, name = python(processor, "-c", NAME, capture=True)
        tests = [*OPTIONS, *arguments, *selection]
        status, _ = python(processor, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
        seconds = time.monotonic() - begin
        print(f"{processor}: instruction set {name or 'unknown'}, {seconds:.0f} s", flush=True)
        if name != expected:
            failed.append(f"{processor} chose {name or 'nothing'}, expected {expected}")
        if status:
            failed.append(f"tests on {processor}")
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
