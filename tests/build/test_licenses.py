"""THIRD_PARTY.md names the licence of everything that ships and of everything that pip brings."""

import fnmatch
import importlib.metadata
import re

import pytest

from docs.tools import licenses
from tests.build.dependencies import ROOT, project

CODE = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".sh"}
BUILT = {".so", ".pyc"}
TEXT = licenses.PAGE.read_text(encoding="utf-8")


def shipped() -> set[str]:
    """The files of a source distribution that are not code; a wheel contains fewer."""
    folders = ["llama_fast", *re.findall(r"^graft (\S+)", (ROOT / "MANIFEST.in").read_text(), re.M)]
    pruned = re.findall(r"^prune (\S+)", (ROOT / "MANIFEST.in").read_text(), re.M)
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    names = {p.relative_to(ROOT).as_posix() for p in paths if p.suffix not in CODE | BUILT}
    names -= {"llama_fast/_build.json"}
    return {name for name in names if not name.startswith(tuple(f"{folder}/" for folder in pruned))}


def test_every_shipped_file_that_is_not_code_has_an_entry() -> None:
    entries = re.findall(r"^\| `([^`]+)` \| .+ \| .+ \|$", TEXT, re.MULTILINE)
    files = shipped()
    assert "llama_fast/eval/suite/paper_table.json" in files
    assert not {f for f in files if not any(fnmatch.fnmatch(f, entry) for entry in entries)}
    assert not {entry for entry in entries if not fnmatch.filter(files, entry)}


def test_every_package_has_a_row_with_the_licence_that_it_states() -> None:
    for package, of in licenses.packages().items():
        row = re.search(rf"^\| {package} \| .* \| (.+) \|$", TEXT, re.MULTILINE)
        assert row, f"{package} is not listed: run python docs/tools/licenses.py"
        assert row[0] + "\n" == licenses.row(package, of, row[1])
        try:
            stated = licenses.licence_of(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        # numpy and torch list every licence of what they bundle, which differs between builds.
        assert stated == row[1] or " AND " in row[1], package
    table = TEXT.partition(licenses.HEAD)[2]
    assert len(re.match(r"(\|.*\n)*", table)[0].splitlines()) == len(licenses.packages())


def test_the_page_is_a_part_of_the_wheel() -> None:
    assert set(project()["license-files"]) == {"LICENSE", "THIRD_PARTY.md"}


@pytest.mark.parametrize(
    ("text", "identifier"),
    [("Apache 2.0 License", "Apache-2.0"), ("MIT License\n\nCopyright 2022", "MIT")],
)
def test_licences_are_called_by_their_identifiers(
    text: str, identifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = importlib.metadata.metadata("pytest")
    del metadata["License-Expression"]
    metadata["License"] = text
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: metadata)
    assert licenses.licence_of("some-package") == identifier
    metadata.replace_header("License", "Proprietary")
    del metadata["Classifier"]
    with pytest.raises(ValueError, match=r"some-package: its licence is not understood: Propri"):
        licenses.licence_of("some-package")
