"""The code blocks of the documentation, and how their commands are read.

A block is run by the tests unless its first line says why not: `# Not run by the tests: needs ...`.
HTML comments steer what a reader need not see:

    <!-- test: setup            Python to be executed before the blocks below it
    ...
    -->
    <!-- test: run -->          the bash block below is executed, in the folder of its page
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.paths import REPOSITORY

LANGUAGES = {"python", "bash", "yaml", "text", "math"}
NOT_RUN = "# Not run by the tests: "
REASONS = {"needs a downloaded model", "needs the network", "needs a mirror of the data sets"}
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
_FENCE = re.compile(r"^( *)```(.*)$")
_COMMENT = re.compile(r"^<!-- test: (.*?)(?: -->)?$")


@dataclass(frozen=True)
class Block:
    """A code block, or hidden setup (language "setup")."""

    page: Path
    line: int
    language: str
    code: str
    marker: str = ""  # of a comment directly above: "" or "run"

    @property
    def reason(self) -> str | None:
        """Why the tests do not run it, or None."""
        first = self.code.partition("\n")[0]
        return first.removeprefix(NOT_RUN) if first.startswith(NOT_RUN) else None

    @property
    def place(self) -> str:
        """For messages: page:line."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found, marker = [], ""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        if fence := _FENCE.match(line):
            indent, language = len(fence[1]), fence[2].split(" ")[0]
            code = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                code.append(inner[indent:])
            else:
                raise ValueError(f"{page}:{number}: a code block without an end")
            found.append(Block(page, number, language, "\n".join(code) + "\n", marker))
            marker = ""
        elif comment := _COMMENT.match(line):
            if comment[1] != "setup":
                marker = comment[1]
                continue
            code = []
            for _, inner in lines:
                if inner == "-->":
                    break
                code.append(inner)
            found.append(Block(page, number, "setup", "\n".join(code) + "\n"))
        elif line.strip():
            marker = ""
    return found


def commands(code: str) -> list[list[str]]:
    """The words of each command of a bash block, without comments and assignments before it."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def llama_fast_arguments(words: list[str]) -> list[str] | None:
    """The arguments of `llama-fast`, however a command starts it; None of another command."""
    if words[0] == "llama-fast":
        return words[1:]
    starts = [i for i, pair in enumerate(pairwise(words)) if pair == ("-m", "llama_fast")]
    if starts:
        rest = words[starts[0] + 2 :]
        return rest[1:] if rest[:1] == ["--"] else rest
    if words[0] == "sbatch":  # slurm.sh hands the rest to `llama-fast train`
        script = next(i for i, word in enumerate(words) if word.endswith("slurm.sh"))
        return ["train", *words[script + 1 :]]
    return None
