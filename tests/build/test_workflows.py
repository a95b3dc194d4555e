"""The workflows run the Makefile's targets, each with the rights and the time that it needs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
NAMES = [path.name for path in WORKFLOWS]


def read(path: Path) -> dict[Any, Any]:
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(path)["jobs"]
    return found


def commands(job: dict[str, Any]) -> Iterator[str]:
    """The shell lines of a job, with the matrix's values in place."""
    for step in job.get("steps", ()):
        for line in step.get("run", "").splitlines():
            names = re.findall(r"\$\{\{ matrix\.([a-z]+) \}\}", line)
            values = job["strategy"]["matrix"][names[0]] if names else [""]
            for value in values:
                yield re.sub(r"\$\{\{ matrix\.[a-z]+ \}\}", str(value), line)


def called(job: dict[str, Any]) -> list[str]:
    """The targets that a job makes, by `make` or `.ci/run`."""
    targets = []
    for line in commands(job):
        found = re.match(r"\s*(?:make|\.ci/run)\s+(.*)", line)
        if found:
            targets += [word for word in found[1].split() if "=" not in word]
    return targets


def in_ci_run() -> list[str]:
    """The targets of `.ci/run` without arguments."""
    found = re.search(r'^all="([^"]+)"', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_there_are_workflows_for_everything() -> None:
    assert {
        "checks.yml",
        "wheels.yml",
        "docs.yml",
        "release.yml",
        "nightly.yml",
        "benchmark.yml",
    } <= {*NAMES}


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_every_target_exists(path: Path) -> None:
    for name, job in jobs(path).items():
        assert set(called(job)) <= TARGETS, name


def test_every_part_of_ci_run_runs_for_each_change() -> None:
    assert set(in_ci_run()) <= TARGETS
    checks = [
        target
        for job in jobs(ROOT / ".github/workflows/checks.yml").values()
        for target in called(job)
    ]
    # test.yml is called for each Python and torch.
    checks += called(jobs(ROOT / ".github/workflows/test.yml")["test"])
    assert sorted(checks) == sorted(in_ci_run())


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_rights_and_time_are_limited(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        if "uses" not in job:
            assert 0 < job["timeout-minutes"] <= 360, name
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_actions_are_pinned_to_commits(path: Path) -> None:
    for line in path.read_text().splitlines():
        found = re.search(r"uses: (\S+)(.*)", line)
        if found and not found[1].startswith("./"):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", found[1]), line
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", found[2]), line


def test_an_action_has_one_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, commit in re.findall(r"uses: ([\w/-]+)@(\S+)", path.read_text()):
            pins.setdefault(action, set()).add(commit)
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


def test_ci_run_refuses_an_unknown_target() -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "run", "no-such-target"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no-such-target" in done.stderr
    assert re.search(r"^no-such-target +\d+ s  failed$", done.stdout, re.MULTILINE)
