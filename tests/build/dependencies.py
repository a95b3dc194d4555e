"""What pyproject.toml requires, and the lowest versions of it.

python -m tests.build.dependencies      requirements at exactly their lower bounds, for pip
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
EXACT = ("dev", "docs")  # the extras with exact versions


@cache
def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def extras() -> dict[str, list[Requirement]]:
    """Extra -> what it lists; "" is what every installation brings."""
    listed = {"": project()["dependencies"], **project()["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in listed.items()}


def canonical(name: str) -> str:
    """The name of a distribution as packages are compared by."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(extra: str) -> set[str]:
    """Names of the distributions that `pip install llama_fast[extra]` asks for."""
    names = {canonical(r.name) for r in extras()[""]}
    for requirement in extras()[extra]:
        if requirement.name == "llama_fast":
            names.update(*map(installed_by, requirement.extras))
        else:
            names.add(canonical(requirement.name))
    return names


def lower_bound(requirement: Requirement) -> str | None:
    """The version in `>=`, None where there is none."""
    bounds = [s.version for s in requirement.specifier if s.operator == ">="]
    return bounds[0] if bounds else None


def oldest() -> list[str]:
    """A line for each requirement of the package and its tests, at its lower bound.

    Without torch, which is tested in its lowest version by itself.
    """
    lines = {}
    for extra, requirements in extras().items():
        for requirement in requirements if extra not in EXACT else ():
            if requirement.name not in ("llama_fast", "torch"):
                options = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
                marker = f"; {requirement.marker}" if requirement.marker else ""
                version = lower_bound(requirement)
                lines[requirement.name] = f"{requirement.name}{options}=={version}{marker}"
    return sorted(lines.values(), key=str.lower)


if __name__ == "__main__":
    print("\n".join(oldest()))
