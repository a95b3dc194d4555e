"""Compiles every kernel in every configuration, for GPUs that need not be present.

    python kernels/_compile.py [OP...] [--arch 90]        (`make gpu-compile`)

The launchers run on meta tensors and record their launches (see _launch.py). Each is compiled for
sm_80, sm_90 and sm_100, and its registers, spills and shared memory are printed. It is an error if
a kernel does not compile, if it needs more shared memory than a block can have, or if a default
configuration (one that is not only an alternative for autotuning) spills.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_fast.kernels._launch import Launch

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.pop("TRITON_INTERPRET", None)  # compiled, not interpreted

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # limit for one block
_TYPES = {
    "torch.float64": "fp64",
    "torch.float32": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.int64": "i64",
    "torch.int32": "i32",
    "torch.int16": "i16",
    "torch.uint8": "u8",
    "torch.int8": "i8",
    "torch.bool": "i1",
}
# The position of an argument: its index and, for an element of a tuple, the index in the tuple.
Position = tuple[int, ...]
_NOT_CONSTEXPR = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


@dataclass(frozen=True)
class Job:
    """One compilation: the kernel, the types of its arguments, and its options."""

    op: str
    module: str
    kernel: str
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[Position, Any], ...]
    divisible: tuple[Position, ...]
    options: tuple[tuple[str, Any], ...]
    arch: int
    alternative: bool

    def name(self) -> str:
        """The name that the table shows."""
        types = ",".join(dict.fromkeys(t[1:] for t in _flat(self.signature) if t[0] == "*"))
        constants: dict[str, Any] = {}
        for position, value in self.constants:
            if len(position) == 1:
                name = self.signature[position[0]][0]
                constants |= vars(value) if is_dataclass(value) else {name: value}
        shown = {k: v for k, v in constants.items() if isinstance(v, (bool, int)) and k.isupper()}
        flags = " ".join(k if v is True else f"{k}={v}" for k, v in shown.items() if v is not False)
        options = " ".join(f"{k}={v}" for k, v in self.options if k.startswith("num"))
        return f"{self.op}.{self.kernel} <{types}> {flags} {options}"


def _flat(signature: Any) -> Iterator[str]:
    """Every type of a signature."""
    for part in signature:
        if isinstance(part, str):
            yield part
        else:
            yield from _flat(part)


@dataclass
class Report:
    """The result of a job: resources, or an error."""

    job: Job
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    error: str = ""

    def failure(self) -> str:
        """Why the result is not acceptable, "" if it is."""
        if self.error:
            return self.error
        limit = SHARED_BYTES[self.job.arch]
        if self.shared_bytes > limit:
            return f"{self.shared_bytes} bytes of shared memory, sm_{self.job.arch} has {limit}"
        # The assembler may spill a loop bound or two outside of loops to stay below a number of
        # registers that lets more blocks run at once. Running out of registers is a failure.
        by_choice = self.spilled_bytes <= 16 and self.registers <= 128
        if self.spilled_bytes and not by_choice and not self.job.alternative:
            return f"{self.spilled_bytes} bytes spilled in a default configuration"
        return ""


def ops() -> list[str]:
    """Every op with a kernel file."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem[0] != "_")


def jobs(op: str, arch: int) -> Iterator[Job]:
    """The configurations that the launchers of `op` choose for an architecture, each once."""
    from llama_fast.kernels import _launch

    module = importlib.import_module(f"llama_fast.kernels.{op}")
    seen = set()
    with _launch.recording(arch) as launches:
        for example in module.examples():
            example()
    # Defaults first: a default that is also an alternative elsewhere is checked as a default.
    for recorded in sorted(launches, key=lambda launch: launch.alternative):
        job = _job(op, recorded, arch)
        key = (job.kernel, job.signature, job.constants, job.options, job.divisible)
        if key not in seen:
            seen.add(key)
            yield job


def _job(op: str, recorded: Launch, arch: int) -> Job:
    """The job for a launch, specialised as Triton's launcher would."""
    from triton.runtime.jit import mangle_type

    kernel = recorded.kernel
    constexprs = {k: v for k, v in recorded.options.items() if k not in _NOT_CONSTEXPR}
    constants: list[tuple[Position, Any]] = []
    divisible: list[Position] = []

    def specialise(path: Position, value: Any) -> Any:
        """The type of an argument; for a tuple, the types of its elements."""
        if isinstance(value, tuple):
            parts = [specialise((*path, i), each) for i, each in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if value is None or (type(value) is int and value == 1):
            constants.append((path, value))
            return "constexpr"
        if hasattr(value, "data_ptr"):
            divisible.append(path)  # a new tensor, or a view that is aligned like one
            return "*" + _TYPES[str(value.dtype)]
        if isinstance(value, bool):
            return "i1"
        if isinstance(value, float):
            return "fp32"
        if not isinstance(value, int):
            return mangle_type(value)  # a tensor descriptor
        if value % 16 == 0:
            divisible.append(path)
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    signature = []
    for i, name in enumerate(kernel.arg_names):
        if kernel.params[i].is_constexpr != (name in constexprs):
            raise TypeError(
                f"{op}.{kernel.__name__}: constexpr in the kernel or the options: {name}"
            )
        if name in constexprs:
            constants.append(((i,), constexprs[name]))
            signature.append((name, "constexpr"))
        else:
            signature.append((name, specialise((i,), recorded.arguments[name])))
    options = tuple((k, v) for k, v in recorded.options.items() if k in _NOT_CONSTEXPR)
    return Job(
        op, kernel.__module__, kernel.__name__, tuple(signature), tuple(constants),
        tuple(divisible), options, arch, recorded.alternative,
    )  # fmt: skip


def compile_one(job: Job) -> Report:
    """Compile, assemble and measure a job."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(job.module), job.kernel)
    source = ASTSource(
        kernel,
        dict(job.signature),
        dict(job.constants),
        {position: [["tt.divisibility", 16]] for position in job.divisible},
    )
    try:
        compiled = triton.compile(
            source, target=GPUTarget("cuda", job.arch, 32), options=dict(job.options)
        )
        registers, spilled = _resources(compiled.asm["cubin"])
    except Exception as error:  # any error of the compiler goes into the report
        return Report(job, error=f"{type(error).__name__}: {error}")
    return Report(job, registers, spilled, compiled.metadata.shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, bytes that a thread spills to local memory)."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output)
    if match is None:
        raise RuntimeError(f"cuobjdump: no line about resources in its output: {output}")
    registers, stack, local = map(int, match.groups())
    return registers, stack + local


def main() -> int:
    """Compile everything; return 1 if a result is not acceptable."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op", nargs="*", help="only these (default: all that have kernels)")
    parser.add_argument("--arch", type=int, action="append", choices=SHARED_BYTES, default=None)
    parser.add_argument(
        "--defaults", action="store_true", help="leave out alternatives for autotuning"
    )
    parser.add_argument("--quiet", action="store_true", help="print failures and the summary only")
    arguments = parser.parse_args()

    from llama_fast._beside import find_beside

    find_beside("kernels")
    begin = time.monotonic()
    todo = [
        job
        for op in arguments.op or ops()
        for arch in arguments.arch or SHARED_BYTES
        for job in jobs(op, arch)
        if not (arguments.defaults and job.alternative)
    ]
    failed = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for report in pool.map(compile_one, todo, chunksize=4):
            failure = report.failure()
            failed += bool(failure)
            if failure or not arguments.quiet:
                print(
                    f"sm_{report.job.arch:<4}{report.registers:>4} registers "
                    f"{report.spilled_bytes:>6} spilled {report.shared_bytes:>7} shared  "
                    f"{report.job.name()}{'  FAILED: ' + failure if failure else ''}",
                    flush=True,
                )
    print(f"{len(todo)} kernels in {time.monotonic() - begin:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
