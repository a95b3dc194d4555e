"""Reports what is installed, what was built and what the machine supports.

Run `python -m llama_fast.info` first when something is slow or missing, and attach its output to a
bug report.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

from llama_fast._arm_cores import core_names
from llama_fast._build_record import build_facts, retry_command
from llama_fast._version import __version__

# Environment variables that change what the package does.
ENVIRONMENT = (
    "LLAMA_FAST_BACKEND",
    "LLAMA_FAST_CACHE_MB",
    "LLAMA_FAST_ISA",
    "LLAMA_FAST_LIBRARY",
    "LLAMA_FAST_AUTOTUNE",
    "TRITON_INTERPRET",
    "THP_MEM_ALLOC_ENABLE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip().splitlines()[0]
    except (OSError, IndexError):
        return None


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """Name of the processor; of an Arm one, of its cores with their numbers."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    lines = text.splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if names:
        return names[0]
    return core_names(text) or platform.processor() or platform.machine()


def cpu_features() -> list[str] | None:
    """Instruction-set extensions that the processor has, or None without the compiled library."""
    from llama_fast.ops.backends import library

    if library.missing_reason is not None:
        return None
    features = json.loads(torch.ops.llama_fast.cpu_features())
    return sorted(name for name, present in features.items() if present)


def _instruction_set() -> str:
    from llama_fast.ops.backends import library

    try:
        return library.isa()
    except RuntimeError as error:  # LLAMA_FAST_ISA names one that is not available
        return f"none: {str(error).splitlines()[0]}"


def huge_pages() -> str:
    """Linux's transparent huge page mode: always, madvise, never, or unknown."""
    modes = _first_line("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = [word.strip("[]") for word in modes.split() if word.startswith("[")]
    return chosen[0] if chosen else "unknown"


def gpus() -> list[str]:
    """One line for each GPU that torch can use."""
    lines = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        lines.append(
            f"{properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    return lines


def collect() -> dict[str, Any]:
    """All facts, as values that JSON can hold.

    Returns:
        A dictionary with the sections "versions", "build", "cpu", "gpu", "environment" and
        "backends". For each op "backends" has the lists "available" and "missing" (with reasons)
        and "chosen".
    """
    from llama_fast.ops import backends

    report = backends()
    build = build_facts()
    return {
        "versions": {
            "llama_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version_of("triton"),
            "numpy": _version_of("numpy"),
            "compiler": build.get("compiler", "none"),
            "platform": platform.platform(),
        },
        "build": _build_section(build),
        "cpu": {
            "model": cpu_model(),
            "logical_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "features": cpu_features(),
            "instruction_set": _instruction_set(),
            "transparent_huge_pages": huge_pages(),
        },
        "gpu": gpus(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "backends": {
            op: {
                "available": report.available[op],
                "missing": report.missing[op],
                "chosen": report.chosen[op],
            }
            for op in report.available
        },
    }


def _build_section(build: dict[str, Any]) -> dict[str, str]:
    section = {
        name: part["detail"] if part["built"] else f"not built: {part['detail']}"
        for name, part in build.get("parts", {}).items()
    }
    return {**section, "to build again": retry_command()} if build.get("missing") else section


def as_json(facts: dict[str, Any]) -> str:
    """`facts` as indented JSON."""
    return json.dumps(facts, indent=2)


_VALUE = 26  # column of the values in the text


def as_text(facts: dict[str, Any], width: int | None = None) -> str:
    """`facts` as text.

    Args:
        facts: see :func:`collect`.
        width: columns of the terminal, at whose end lines are broken between words and go on under
            their values; None: lines are not broken.
    """
    lines = []
    for section in ("versions", "build", "cpu", "environment"):
        rows = facts[section] or {"": "none"}
        lines.append(section)
        for name, value in rows.items():
            text = " ".join(value) if isinstance(value, list) else value
            shown = "unknown (no compiled library)" if text is None else text
            lines.append(f"  {name:<{_VALUE - 2}}{shown}")
    lines += ["gpu", *(f"  {gpu}" for gpu in facts["gpu"] or ["none that torch can use"])]
    lines.append("backends")
    for op, row in facts["backends"].items():
        lines.append(f"  {op:<{_VALUE - 2}}{', '.join(row['available'])} (now: {row['chosen']})")
        lines += [f"  {'':<{_VALUE - 2}}no {name}: {why}" for name, why in row["missing"].items()]
    return "\n".join(lines if width is None else [_folded(line, width) for line in lines])


def _folded(line: str, width: int) -> str:
    """A line that goes on under its value, or two columns in if there is no room for that."""
    indent = " " * (_VALUE if width > 2 * _VALUE else 4)
    return textwrap.fill(
        line, max(width, 20), subsequent_indent=indent, drop_whitespace=True,
        break_on_hyphens=False, break_long_words=False, replace_whitespace=False,
    )  # fmt: skip


def terminal_width() -> int | None:
    """Columns of standard output; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


if __name__ == "__main__":
    try:
        facts = collect()
        text = as_json(facts) if "--json" in sys.argv[1:] else as_text(facts, terminal_width())
        print(text, flush=True)
    except BrokenPipeError:  # the reader of the output closed it: `| head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
