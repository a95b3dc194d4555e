"""Writes the table of THIRD_PARTY.md: the licence of each package that an extra installs.

    python docs/tools/licenses.py       (run it where all extras are installed)

The licences are those that the installed packages state of themselves.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.build.dependencies import EXACT, canonical, extras  # noqa: E402

PAGE = ROOT / "THIRD_PARTY.md"
HEAD = "| package | extra | licence |\n| --- | --- | --- |\n"
# Extras of those who work on this project; what they install comes with no installation of it.
NOT_LISTED = {*EXACT, "test"}
# What packages write, lower case, and the identifier of SPDX for it.
SPDX = (
    (r"apache( software)?( license)?[ ,-]*(2\.0|2)?( license)?", "Apache-2.0"),
    (r"mit( license)?(\W.*)?", "MIT"),
    (r"bsd|bsd license|bsd 3-clause.*", "BSD-3-Clause"),
    (r"mpl-2.0|mozilla public license 2.0.*", "MPL-2.0"),
    (r"python software foundation license", "PSF-2.0"),
)
# Where a package names a family of licences alone; as its licence file says.
STATED = {"matplotlib": "PSF-2.0", "scipy": "BSD-3-Clause"}


def licence_of(package: str) -> str:
    """The licence of an installed package, by its identifier of SPDX where there is one.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
        ValueError: it states no licence that this module knows.
    """
    metadata = importlib.metadata.metadata(package)
    if expression := metadata.get("License-Expression"):
        return expression
    if package in STATED:
        return STATED[package]
    classifiers = metadata.get_all("Classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    for text in (metadata.get("License") or "", *named):
        for pattern, identifier in SPDX:
            if re.fullmatch(pattern, text.strip(), re.IGNORECASE | re.DOTALL):
                return identifier
    raise ValueError(
        f"{package}: its licence is not understood: {metadata.get('License')}, {named}"
    )


def packages() -> dict[str, list[str]]:
    """Package -> the extras that list it; none for what every installation brings."""
    found: dict[str, list[str]] = {}
    for extra, requirements in extras().items():
        for requirement in requirements if extra not in NOT_LISTED else ():
            if requirement.name != "llama_fast":
                found.setdefault(canonical(requirement.name), []).extend([extra] * bool(extra))
    return dict(sorted(found.items()))


def row(package: str, of: list[str], licence: str) -> str:
    """A row of the table."""
    return f"| {package} | {', '.join(f'`{e}`' for e in of) or 'always'} | {licence} |\n"


def main() -> None:
    """Write the table."""
    before, _, after = PAGE.read_text(encoding="utf-8").partition(HEAD)
    rows = "".join(row(name, of, licence_of(name)) for name, of in packages().items())
    rest = re.sub(r"\A(\|.*\n)+", "", after)
    PAGE.write_text(before + HEAD + rows + rest, encoding="utf-8")


if __name__ == "__main__":
    main()
