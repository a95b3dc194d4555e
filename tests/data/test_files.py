"""The files beside these tests: each is named, with source and licence, and is what it was."""

from __future__ import annotations

import re

from tests.data import make


def test_each_file_is_the_one_that_is_stated() -> None:
    assert make.hashes() == make.stated()


def test_each_file_has_a_source_and_a_licence() -> None:
    for path in make.hashes():
        source = make.source_of(path)
        assert source is not None, f"{path}: add it to SOURCES in tests/data/make.py"
        assert source.what and source.source, path
        assert source.licence or path.startswith("licences/"), path


def test_licences_that_the_table_names_are_there() -> None:
    for source in make.SOURCES:
        for name in re.findall(r"`(licences/[^`]*)`", source.licence):
            assert len(list(make.FILES.glob(name))) == 1, name


def test_the_table_is_the_list_of_sources() -> None:
    assert f"{make.BEGIN}\n{make.table()}\n{make.END}" in make.README.read_text()


def test_all_files_are_small() -> None:
    sizes = [(make.FILES / path).stat().st_size for path in make.hashes()]
    assert sum(sizes) <= make.LIMIT
