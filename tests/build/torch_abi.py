"""Compiles and links the ops library against other releases of torch than the installed one.

    python tests/build/torch_abi.py                    the lowest that is supported, and 2.11.0
    python tests/build/torch_abi.py 2.12.0             ("lowest" for the lowest alone)

Only what includes torch's headers is compiled for each of them; the kernels are those of
build/native. Then what the library imports from torch is looked up in the lowest release: a
function that came later has to be looked up at run time. The libraries are
build/native/VERSION/libllama_fast.so; that of "lowest" is the one to test on all releases
(`make test-torch`).

With LLAMA_FAST_EMULATE_CUDA=1 the same for the CUDA operators, in build/emulated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# CUDA's own compiler makes nothing that depends on torch.
os.environ["LLAMA_FAST_CUDA"] = "0"

from build_native import EMULATE, EMULATED, LIBRARY, NativeBuild  # noqa: E402
from fetch_torch import LOWEST, CannotFetch, fetch  # noqa: E402

VERSIONS = ("lowest", "2.11.0")


def check(version: str) -> None:
    """Build against torch `version`; an error where that fails."""
    begin = time.monotonic()
    os.environ["LLAMA_FAST_TORCH"] = str(fetch(LOWEST if version == "lowest" else version))
    build = NativeBuild(variant=version)
    build.run()
    name = f"{version}/{EMULATED if EMULATE else LIBRARY}"
    if name not in build.outputs:
        raise SystemExit(f"torch_abi: does not build against torch {version}\n{build.table()}")
    seconds = time.monotonic() - begin
    found = build.facts["torch"]
    print(f"torch {found}: build/{build.directory.name}/{name} in {seconds:.0f} s", flush=True)
    imported = {n for n in symbols(build.directory / name, "--undefined-only") if "torch" in n}
    late = sorted(imported - symbols(fetch(LOWEST) / "lib" / "libtorch_cpu.so", "--defined-only"))
    if late:
        raise SystemExit(f"torch_abi: torch {LOWEST} has no {', '.join(late)}")
    unstable = sorted(n for n in imported if not n.startswith(("aoti_torch_", "torch_")))
    if unstable:
        raise SystemExit(f"torch_abi: outside torch's stable interface: {', '.join(unstable)}")


def symbols(library: Path, which: str) -> set[str]:
    """The names in the dynamic symbol table of `library`."""
    command = ["nm", "-D", which, str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[-1] for line in lines}


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="version")
    try:
        for version in parser.parse_args().versions:
            check(version)
    except CannotFetch as error:
        raise SystemExit(f"torch_abi: {error}") from error


if __name__ == "__main__":
    main()
