"""Says at the end of a run in one line what it left out, and fails in CI where it need not have."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from tests.extras import EXTRAS
from tests.paths import ORIGINALS

# How a reason begins -> what the line says: hardware and systems, which no package brings. Whatever
# else is missing can be installed: in CI any other reason is a failure.
NEEDS = {
    "needs a GPU": "a GPU",
    "needs a machine without a GPU": "no GPU",
    "needs a processor with ": "another processor",
    "needs a system that confines programs": "a system that confines programs",
    "needs Linux": "Linux",
    "needs root": "root",
    "needs nvcc": "a CUDA toolkit",
    # Of runs beside others, with the lowest versions: with the newest there are none.
    "needs torch 2.11": "a newer torch",
    "needs a newer transformers": "a newer transformers",
}
LEFT_OUT = "left_out"
COUNT = pytest.StashKey[int]()


def leave_extras_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need whole originals which are not there."""
    without = [
        item
        for item in items
        if not all((ORIGINALS / mark.args[0]).exists() for mark in item.iter_markers("extra"))
    ]
    if without:
        config.hook.pytest_deselected(items=without)
        gone = set(without)
        items[:] = [item for item in items if item not in gone]
    config.stash[COUNT] = len(without)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist tells the first one how many tests it left out; that one judges."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[LEFT_OUT] = session.config.stash.get(COUNT, 0)
    elif session.exitstatus == pytest.ExitCode.OK and refused(skipped(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Workers:
    """Hears from the processes of pytest-xdist, which all leave the same tests out."""

    def pytest_testnodedown(self, node: Any) -> None:
        node.config.stash[COUNT] = getattr(node, "workeroutput", {}).get(LEFT_OUT, 0)


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Workers())


def need(reason: str) -> str | None:
    """What a reason says is missing; None for one that CI does not take."""
    found = (said for begin, said in NEEDS.items() if reason.startswith(begin))
    return next(found, None)


def summary(reasons: Counter[str], extras: int) -> str:
    """The line."""
    needs: Counter[str] = Counter()
    for reason, count in reasons.items():
        needs[need(reason) or f"something else ({reason.splitlines()[0]:.60})"] += count
    parts = [f"{n} {'needs' if n == 1 else 'need'} {what}" for what, n in needs.most_common()]
    said = f"skipped: {', '.join(parts) or 'nothing'}"
    if extras:
        said += f"; {extras} of whole originals left out (LLAMA_FAST_TEST_DATA)"
    return said


def skipped(config: pytest.Config) -> Counter[str]:
    """How often tests were skipped for each reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    texts = (report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    return Counter(re.sub(r"^Skipped: ", "", text) for text in texts)


def refused(reasons: Counter[str]) -> list[str]:
    """The reasons that CI does not take; none elsewhere.

    Where extras are missing on purpose, as beside another torch, so are their tests.
    """
    if os.environ.get("CI") != "true":
        return []
    partial = any(importlib.util.find_spec(name) is None for name in EXTRAS)
    return [
        reason
        for reason in reasons
        if need(reason) is None and not (partial and reason.endswith(" is not installed"))
    ]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: Any, config: pytest.Config
) -> Generator[None, None, None]:
    """Behind everything else that is said of the run."""
    yield
    reasons, extras = skipped(config), config.stash.get(COUNT, 0)
    if reasons or extras:
        terminalreporter.write_line(summary(reasons, extras))
    for reason in refused(reasons):
        terminalreporter.write_line(f"in CI this is no reason to skip a test: {reason}", red=True)
