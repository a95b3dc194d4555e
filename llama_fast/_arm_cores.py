"""Names of 64-bit Arm processor cores, which Linux lists by number in /proc/cpuinfo.

The numbers are those of the register MIDR_EL1, as in Linux's arch/arm64/include/asm/cputype.h.
"""

from __future__ import annotations

from collections import Counter

# Implementer: its name, and the names of its cores by part number.
CORES: dict[int, tuple[str, dict[int, str]]] = {
    0x41: (
        "Arm",
        {
            0xD03: "Cortex-A53",
            0xD04: "Cortex-A35",
            0xD05: "Cortex-A55",
            0xD07: "Cortex-A57",
            0xD08: "Cortex-A72",
            0xD09: "Cortex-A73",
            0xD0A: "Cortex-A75",
            0xD0B: "Cortex-A76",
            0xD0C: "Neoverse-N1",
            0xD0D: "Cortex-A77",
            0xD40: "Neoverse-V1",
            0xD41: "Cortex-A78",
            0xD44: "Cortex-X1",
            0xD46: "Cortex-A510",
            0xD47: "Cortex-A710",
            0xD48: "Cortex-X2",
            0xD49: "Neoverse-N2",
            0xD4A: "Neoverse-E1",
            0xD4D: "Cortex-A715",
            0xD4E: "Cortex-X3",
            0xD4F: "Neoverse-V2",
            0xD80: "Cortex-A520",
            0xD81: "Cortex-A720",
            0xD82: "Cortex-X4",
            0xD84: "Neoverse-V3",
            0xD85: "Cortex-X925",
            0xD87: "Cortex-A725",
            0xD8E: "Neoverse-N3",
        },
    ),
    0x46: ("Fujitsu", {0x001: "A64FX"}),
    0x48: ("HiSilicon", {0xD01: "TaiShan-v110"}),
    0x4E: ("NVIDIA", {0x004: "Carmel"}),
    0x51: ("Qualcomm", {0x001: "Oryon"}),
    0x61: (
        "Apple",
        {0x022: "M1 Icestorm", 0x023: "M1 Firestorm", 0x032: "M2 Blizzard", 0x033: "M2 Avalanche"},
    ),
    0x6D: ("Microsoft", {0xD49: "Azure Cobalt 100"}),
    0xC0: ("Ampere", {0xAC3: "AmpereOne", 0xAC4: "AmpereOne A"}),
}


def core_name(implementer: int, part: int) -> str:
    """Name of a core with its numbers, such as "Arm Neoverse-V2 (0x41/0xd4f)"."""
    maker, parts = CORES.get(implementer, ("unknown core", {}))
    known = f"{maker} {parts[part]}" if part in parts else maker
    return f"{known} (0x{implementer:02x}/0x{part:03x})"


def core_names(cpuinfo: str) -> str | None:
    """Names of the cores that the text of /proc/cpuinfo lists, or None where it lists none.

    Cores of several kinds come with their numbers: "4 x Arm Cortex-A55 (0x41/0xd05), 4 x ...".
    """
    kinds: Counter[tuple[int, int]] = Counter()
    implementer = None
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        try:
            if key.strip() == "CPU implementer":
                implementer = int(value, 0)
            elif key.strip() == "CPU part" and implementer is not None:
                kinds[implementer, int(value, 0)] += 1
        except ValueError:
            continue
    names = [(core_name(*kind), count) for kind, count in sorted(kinds.items())]
    if len(names) == 1:
        return names[0][0]
    return ", ".join(f"{count} x {name}" for name, count in names) or None
