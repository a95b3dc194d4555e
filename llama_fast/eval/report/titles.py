"""Finds the question itself in a prompt: its line for a list, and where it begins."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

LONGEST = 240
# Characters that all titles of a task may begin with; more are left out.
SHARED = 40
# Tokens of chat templates; the names of roles stand alone on a line beside them.
_MARKUP = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|</?(?:start|end)_of_turn>|\[/?INST\]")
_ROLE = re.compile(r"(?:system|user|assistant|model|human)\s*", re.IGNORECASE)
# What asks for the answer at a prompt's end.
_ASKS = re.compile(
    r"(?:A|Answer|Solution|Output|Response|Final Answer)\s*:.{0,60}|\[BEGIN\]|```\w*"
)
# What stands before a question; the rest of the line, or the next line, is the question. Inside a
# line after a passage in AGIEval.
_CUE = re.compile(
    r"^(?:Question|Q|Problem|Goal|Instruction|Sentence)\s*\d*\s*[:.]\s*", re.IGNORECASE
)
_TASK = re.compile(r"\bhere is your task:\s*")
# Options in the text: "A. x", "(A) x", "- x", and the line in front of them.
_OPTION = re.compile(r"\(?[A-Z][.)]\s|-\s|(?:Options|Choices|Answer Choices)\s*:")
_INLINE = re.compile(r"(?<=[^\w\s])\s*\bQ:\s+")
_CHOICES = re.compile(r"\s+Answer Choices\s*:.*", re.DOTALL)
# A function without a body, such as HumanEval's.
_FUNCTION = re.compile(r"^[ \t]*(?:async\s+)?def\s+(\w+)\s*\(", re.MULTILINE)
_DOCSTRING = re.compile(r"(\"\"\"|''')\s*(.+?)\s*\1", re.DOTALL)


class Heading(NamedTuple):
    """The question in a prompt.

    Attributes:
        title: its first line, or the line that asks.
        rest: further text, which distinguishes questions of the same title.
        start: index in the prompt at which the question's text begins.
    """

    title: str
    rest: str
    start: int


class _Line(NamedTuple):
    start: int
    text: str


def heading(prompt: str) -> Heading:
    """The question of a prompt, without examples, options and the request for an answer.

    Args:
        prompt: the text before the answer, with or without a chat template. The last example is the
            question.
    """
    # Markup turns into line breaks of the same length, so that positions stay.
    plain = _MARKUP.sub(lambda found: "\n" * len(found[0]), prompt)
    lines = _lines(plain)
    while len(lines) > 1 and _ASKS.fullmatch(lines[-1].text):
        lines.pop()
    if not lines:
        return Heading("", "", 0)
    found = _function(plain, lines) or _cued(lines) or _uncued(lines)
    rest = " ".join(line.text for line in lines if line.start > found.start)
    title = found.text
    asked = list(_INLINE.finditer(title))
    if asked:
        title, rest = title[asked[-1].end() :], title[: asked[-1].start()]
    return Heading(_CHOICES.sub("", title), rest, _start(plain, found.start))


def titles(headings: Sequence[Heading]) -> list[str]:
    """Titles of a task's questions, which differ from each other where the questions do.

    A title that several questions have is followed by their further lines, and the beginning that
    all titles share is left out if it is longer than :data:`SHARED`.
    """
    times = Counter(one.title for one in headings)
    full = [
        f"{one.title} {one.rest}".strip() if times[one.title] > 1 else one.title for one in headings
    ]
    # The first and the last in order share what all share.
    ends = zip(min(full, default=""), max(full, default=""), strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))
    shared = full[0].rfind(" ", 0, same) + 1 if full else 0
    if shared > SHARED and len(set(full)) > 1:
        full = [f"… {title[shared:]}" for title in full]
    return [title[:LONGEST] for title in full]


def _start(text: str, line: int) -> int:
    """Index of the paragraph around a line, or of the line if an example is in that paragraph."""
    before = text.rfind("\n\n", 0, line + 1)
    start = 0 if before < 0 else before + 2
    # Behind empty lines and the name of a role.
    start = next((one.start for one in _lines(text[start : line + 1])), line - start) + start
    is_after_example = any(_CUE.match(one.text) for one in _lines(text[start:line]))
    return line if is_after_example else start


def _lines(text: str) -> list[_Line]:
    """The lines that are not empty and no names of roles, without white space around them."""
    result = []
    for found in re.finditer(r"[^\n]+", text):
        line = found[0].strip()
        if line and not _ROLE.fullmatch(line):
            result.append(_Line(found.start() + found[0].index(line), line))
    return result


def _function(text: str, lines: list[_Line]) -> _Line | None:
    """The first sentence of the last function's docstring, if the prompt ends with the function."""
    last = lines[-1]
    if not last.text.endswith(('"""', "'''")):
        return None
    function = next(reversed(list(_FUNCTION.finditer(text))), None)
    docstring = function and _DOCSTRING.search(text, function.end())
    if function is None or docstring is None:
        return None
    words = re.split(r"\n\s*\n|\n\s*>>>|(?<=[.?!])\s", docstring[2], maxsplit=1)[0]
    return _Line(function.start(), f"{function[1]}: {' '.join(words.split())}")


def _cued(lines: list[_Line]) -> _Line | None:
    """The last line that says "Question:" or the like, else None."""
    for at in range(len(lines) - 1, -1, -1):
        start, text = lines[at]
        task = _TASK.search(text)
        if task:
            return _Line(start, text[task.end() :])
        if not _CUE.match(text):
            continue
        while found := _CUE.match(text):
            text = text[found.end() :]
        if not text and at + 1 < len(lines):
            text = lines[at + 1].text
        return _Line(start, text) if text else None
    return None


def _uncued(lines: list[_Line]) -> _Line:
    """The last line in front of the options at the end, or the last one without options."""
    at = len(lines) - 1
    while at > 0 and _OPTION.match(lines[at].text):
        at -= 1
    return lines[at]
