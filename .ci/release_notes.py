"""Check that a tag, the version, the changelog and the citation agree; write the release's notes.

    python .ci/release_notes.py v0.2.0 build/release-notes.md

It needs nothing but Python, so that it runs before anything is installed or built.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = ROOT / "llama_fast" / "_version.py"
CHANGELOG = ROOT / "CHANGELOG.md"
CITATION = ROOT / "CITATION.cff"
HEADING = re.compile(
    r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d{2}-\d{2}))?$", re.MULTILINE
)
LINKS = re.compile(r"^\[[^]]+\]: #\S+$", re.MULTILINE)


def version() -> str:
    """Return the version of the package."""
    found = re.search(r'^__version__ = "([^"]+)"$', VERSION.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f'{VERSION}: expected a line __version__ = "..."')
    return found[1]


def releases(changelog: str) -> dict[str, tuple[str, str]]:
    """Return the releases that a changelog describes, as version -> (date, text), newest first."""
    headings = list(HEADING.finditer(changelog))
    starts = [*(heading.start() for heading in headings), len(changelog)]
    return {
        heading["version"]: (heading["date"], LINKS.sub("", changelog[heading.end() : end]).strip())
        for heading, end in zip(headings, starts[1:], strict=True)
        if heading["date"] is not None
    }


def citation_version(citation: str) -> str:
    """Return the version that CITATION.cff names."""
    found = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    if found is None:
        raise ValueError(f"{CITATION}: expected a line version: ...")
    return found[1]


def notes(tag: str, version: str, changelog: str, citation: str) -> str:
    """Return the changelog's section about the release that a tag names.

    Raises:
        ValueError: the tag is not "v" and the version, the newest release of the changelog or the
            citation is another one, or its section is empty.
    """
    if tag != f"v{version}":
        raise ValueError(f"tag {tag}: expected v{version}, as {VERSION.name} says")
    described = releases(changelog)
    newest = next(iter(described), "none")
    if newest != version:
        raise ValueError(f"{CHANGELOG.name}: expected the newest release to be {version}: {newest}")
    if citation_version(citation) != version:
        raise ValueError(f"{CITATION.name}: expected {version}, got {citation_version(citation)}")
    _, text = described[version]
    if not text:
        raise ValueError(f"{CHANGELOG.name}: the section of {version} is empty")
    return text + "\n"


if __name__ == "__main__":
    try:
        tag, out = sys.argv[1:]
        text = notes(tag, version(), CHANGELOG.read_text(), CITATION.read_text())
    except ValueError as error:
        sys.exit(f"error: {error}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(text)
    print(f"{out}: the notes of {tag}")
