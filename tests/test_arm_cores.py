"""Names of Arm cores, from the text of /proc/cpuinfo."""

import pytest

from llama_fast._arm_cores import core_names

CORE = """processor\t: {number}
BogoMIPS\t: 2000.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics bf16
CPU implementer\t: {implementer}
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 1

"""


def cpuinfo(*cores: tuple[str, str]) -> str:
    return "".join(CORE.format(number=n, implementer=i, part=p) for n, (i, p) in enumerate(cores))


def test_cores_of_one_kind_are_named_once() -> None:
    assert core_names(cpuinfo(*[("0x41", "0xd4f")] * 3)) == "Arm Neoverse-V2 (0x41/0xd4f)"


def test_cores_of_several_kinds_are_counted() -> None:
    text = cpuinfo(*[("0x41", "0xd05")] * 2, ("0x41", "0xd0b"))
    assert core_names(text) == "2 x Arm Cortex-A55 (0x41/0xd05), 1 x Arm Cortex-A76 (0x41/0xd0b)"


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xfff", "Arm (0x41/0xfff)"),
        ("0x99", "0x001", "unknown core (0x99/0x001)"),
        ("0xc0", "0xac3", "Ampere AmpereOne (0xc0/0xac3)"),
    ],
)
def test_unknown_numbers_are_shown(implementer: str, part: str, name: str) -> None:
    assert core_names(cpuinfo((implementer, part))) == name


@pytest.mark.parametrize("text", ["", "model name\t: AMD EPYC\n", "CPU part\t: 0xd4f\n"])
def test_other_texts_name_no_core(text: str) -> None:
    assert core_names(text) is None


def test_numbers_that_are_none_are_passed_over() -> None:
    assert (
        core_names(cpuinfo(("0x41", "what"), ("0x41", "0xd0c"))) == "Arm Neoverse-N1 (0x41/0xd0c)"
    )
