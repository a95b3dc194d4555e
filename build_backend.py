"""PEP 517 build backend: setuptools', which asks for torch only where none is installed.

The build needs torch's headers and libraries, and any torch from `MINIMUM_TORCH` on will do,
because the library uses torch's stable ABI. An isolated build (`pip install .`) does not see the
packages of the environment it installs into, so a plain build requirement would download several
gigabytes beside a torch that is already there. pip's isolated build does run under that
environment's interpreter, however, so its site-packages folder can be found and used directly.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that stay as they are)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

MINIMUM_TORCH = (2, 10)

# What a build reads of the folder of torch.
BUILD_NEEDS = ("version.py", "include", "lib")


class CannotBuild(Exception):
    """Why a part is left out, in one line."""


class NotWanted(CannotBuild):
    """Why a part is left out on purpose: nobody misses it."""


class BadSetting(ValueError):
    """An environment variable that chooses what is built has a value that means nothing."""


class NotATorch(Exception):
    """LLAMA_FAST_TORCH names a folder that is not that of a torch package."""


def torch_directory() -> Path | None:
    """Folder of the torch package to build against, found without importing it, or None.

    The environment variable LLAMA_FAST_TORCH names another folder than that of the installed one;
    `NotATorch` where that has not what a build needs.
    """
    if asked := os.environ.get("LLAMA_FAST_TORCH"):
        missing = [part for part in BUILD_NEEDS if not os.path.exists(os.path.join(asked, part))]
        if missing:
            raise NotATorch(
                f"LLAMA_FAST_TORCH={asked}: expected the folder of a torch package, "
                f"found no {', '.join(missing)} in it"
            )
        return Path(asked).resolve()
    spec = importlib.util.find_spec("torch")
    candidates = list(spec.submodule_search_locations or []) if spec else []
    roots = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    if site.ENABLE_USER_SITE:
        roots.append(site.getusersitepackages())
    candidates += [os.path.join(root, "torch") for root in roots]
    for candidate in candidates:
        if os.path.isfile(os.path.join(candidate, "version.py")):
            return Path(candidate)
    return None


def torch_facts(directory: Path) -> dict[str, Any]:
    """The variables of torch/version.py (`__version__`, `cuda`, ...), without importing torch."""
    facts: dict[str, Any] = {}
    exec((directory / "version.py").read_text(), facts)
    return facts


def is_recent(version: str) -> bool:
    """Whether a torch version string such as '2.13.0+cpu' is `MINIMUM_TORCH` or later."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= MINIMUM_TORCH


def _torch_requirement() -> list[str]:
    if os.environ.get("LLAMA_FAST_BUILD") == "0":
        return []
    directory = torch_directory()
    if directory and is_recent(torch_facts(directory)["__version__"]):
        return []
    return ["torch>=" + ".".join(map(str, MINIMUM_TORCH))]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """setuptools' requirements, and torch where it is not installed."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """setuptools' requirements, and torch where it is not installed."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
