"""Builds and runs threads.cpp under ThreadSanitizer, once for each instruction set.

python tests/sanitize/threads.py      (`make test-sanitize`)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_native import COMPILED_ONCE, CSRC, CXX_FLAGS, BuildFile, Toolchain  # noqa: E402

FLAGS = [*CXX_FLAGS, "-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=thread", f"-I{CSRC}"]
GLUE = ("memory", "output_cache", "scratch")  # what knows nothing of torch


def build(tools: Toolchain, isas: dict[str, list[str]], folder: Path) -> Path:
    """The program, with the kernels of all `isas`."""
    folder.mkdir(parents=True, exist_ok=True)
    ninja_file = BuildFile(folder)
    command = [*tools.cxx, *FLAGS]
    have = [f"-DLLAMA_FAST_HAVE_{name.upper()}=1" for name in isas]
    sources = sorted((CSRC / "cpu").glob("*.cpp"))
    once = [s for s in sources if s.name in COMPILED_ONCE]
    objects = [ninja_file.compile([*command, *have], s) for s in once]
    objects += [ninja_file.compile(command, CSRC / "glue" / f"{name}.cpp") for name in GLUE]
    for isa, flags in isas.items():
        kernels = [*command, *flags, f"-DLLAMA_FAST_ISA={isa}"]
        objects += [ninja_file.compile(kernels, s, f".{isa}") for s in sources if s not in once]
    failed = ninja_file.run(tools.ninja, objects)
    if any(failed.values()):
        raise SystemExit(f"could not compile: {failed}")
    program = folder / "threads"
    driver = Path(__file__).with_suffix(".cpp")
    parts = [str(folder / o) for o in objects]
    subprocess.run([*command, str(driver), *parts, "-pthread", "-o", str(program)], check=True)
    return program


def main() -> None:
    """Build, then run for every instruction set; ends with 1 if any run fails."""
    tools = Toolchain.find()
    isas = tools.instruction_sets()
    program = build(tools, isas, ROOT / "build" / "threads")
    # ThreadSanitizer does not start where addresses are randomised by as many bits as Linux may.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    failed = []
    for isa in isas:
        environment = {**os.environ, "LLAMA_FAST_ISA": isa, "TSAN_OPTIONS": "halt_on_error=1"}
        done = subprocess.run([*fixed, str(program)], env=environment)
        if done.returncode:
            failed.append(isa)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
