"""A release: one version everywhere, and a tag that is not of this version is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import llama_fast

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "release_notes.py"
spec = importlib.util.spec_from_file_location("release_notes", SCRIPT)
assert spec is not None and spec.loader is not None
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)

CHANGELOG = """# Changelog

## [Unreleased]

- Not yet.

## [1.1.0] - 2026-12-02

### Fixed

- One thing.

## [1.0.0] - 2026-12-01

- First.

[Unreleased]: #unreleased
[1.0.0]: #100-2026-12-01
"""
CITATION = "cff-version: 1.2.0\nversion: 1.1.0\n"


def test_the_version_is_the_same_everywhere() -> None:
    version = llama_fast.__version__
    assert release.version() == version
    assert next(iter(release.releases(release.CHANGELOG.read_text()))) == version
    assert release.citation_version(release.CITATION.read_text()) == version
    # The package's metadata and the site read the same file.
    assert 'attr = "llama_fast._version.__version__"' in (ROOT / "pyproject.toml").read_text()
    assert "_version.py" in (ROOT / "docs" / "tools" / "hooks.py").read_text()


def test_notes_are_the_section_of_the_tag(tmp_path: Path) -> None:
    out = tmp_path / "build" / "notes.md"
    tag = f"v{llama_fast.__version__}"
    # With the standard library alone, as in the first job of a release.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), tag, str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("### Added\n")
    assert release.notes("v1.1.0", "1.1.0", CHANGELOG, CITATION) == "### Fixed\n\n- One thing.\n"


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "citation", "words"),
    [
        ("v1.0.0", "1.1.0", CHANGELOG, CITATION, "tag v1.0.0: expected v1.1.0"),
        ("1.1.0", "1.1.0", CHANGELOG, CITATION, "tag 1.1.0: expected v1.1.0"),
        ("v1.2.0", "1.2.0", CHANGELOG, CITATION, "newest release to be 1.2.0: 1.1.0"),
        ("v1.0.0", "1.0.0", CHANGELOG, CITATION, "newest release to be 1.0.0: 1.1.0"),
        ("v1.1.0", "1.1.0", "# Changelog\n", CITATION, "newest release to be 1.1.0: none"),
        ("v1.1.0", "1.1.0", CHANGELOG, "version: 1.0.0\n", "expected 1.1.0, got 1.0.0"),
        ("v1.1.0", "1.1.0", CHANGELOG, "title: x\n", "expected a line version"),
        ("v1.1.0", "1.1.0", "## [1.1.0] - 2026-12-02\n", CITATION, "section of 1.1.0 is empty"),
    ],
)
def test_what_does_not_agree_is_an_error(
    tag: str, version: str, changelog: str, citation: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        release.notes(tag, version, changelog, citation)
