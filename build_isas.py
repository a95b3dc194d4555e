"""The processors and instruction sets that are compiled for (see build_native.py)."""

from __future__ import annotations

import os
import platform

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
# GCC for Arm schedules instructions before it allocates registers: the loads of a register tile
# come so early that its sums no longer fit.
NEON = ["-fno-schedule-insns"]

# Compiler flags by processor and instruction set; the first of each is what every such processor
# runs, and the best comes last.
ISAS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "portable": [],
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512_bf16": AVX512_BF16,
        "amx_bf16": [*AVX512_BF16, "-mamx-tile", "-mamx-bf16"],
    },
    # fp16: GCC 12 with bf16 alone makes constants that its assembler refuses.
    "aarch64": {"neon": NEON, "neon_bf16": [*NEON, "-march=armv8.2-a+fp16+bf16"]},
}
OTHERS: dict[str, list[str]] = {"portable": []}  # of a processor that is not there


def processor(name: str) -> str:
    """The processor that `name` names, as Linux spells it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())


HERE = processor(platform.machine())
TARGET = processor(os.environ.get("LLAMA_FAST_TARGET") or HERE)
CROSS = TARGET != HERE
