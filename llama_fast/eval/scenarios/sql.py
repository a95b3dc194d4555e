"""Model-written SQL: extracts it from an answer, compares it, and runs it safely.

A query runs in another process, on a read-only connection to the SQLite file. An authoriser allows
SELECT, reads of the file's own tables and a list of functions, and thereby excludes ATTACH, PRAGMA,
writes, extensions, recursion and functions that create long values. The query is limited in steps
of SQLite's virtual machine, which are the same on every machine, in memory, and in time.
"""

from __future__ import annotations

import atexit
import os
import re
import select
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from llama_fast.eval.suite import jail
from llama_fast.eval.suite.jail.frames import write_frame
from llama_fast.eval.suite.jail.queries import MAX_SECONDS
from llama_fast.eval.suite.jail.values import decode, encode

MAX_LENGTH = 10_000  # characters of a query
_STARTUP_SECONDS = 30.0

Rows = list[tuple[Any, ...]]


class QueryError(Exception):
    """SQLite or a limit refused a query; the message says why."""


def run_query(database: Path, query: str) -> Rows:
    """The rows that a SELECT returns on an SQLite file.

    Raises:
        QueryError: the query is not one valid SELECT, is not allowed, or exceeds a limit.
    """
    if len(query) > MAX_LENGTH:
        raise QueryError(f"query of {len(query)} characters, the limit is {MAX_LENGTH}")
    if "||" in query:
        raise QueryError("|| is not allowed: nested, it makes values that fill the memory")
    uri = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
    ran, answer = _process.ask([uri, query])
    if not ran:
        raise QueryError(answer)
    return answer


class _Process:
    """The process that runs the queries; restarted after it had to be killed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        atexit.register(self.end)

    def ask(self, request: list[str]) -> Any:
        with self.lock:
            if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                self.start()
            try:
                return self.exchange(encode(request), MAX_SECONDS)
            except TimeoutError:
                self.end()
                return False, f"longer than {MAX_SECONDS} s"
            except EOFError:
                self.end()
                return False, "its process was ended"
            except BaseException:  # the next read would return the answer to this request
                self.end()
                raise

    def start(self) -> None:
        self.owner, self.process = (
            os.getpid(),
            subprocess.Popen(
                jail.command("queries"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
            ),
        )
        try:
            self.exchange(b"", _STARTUP_SECONDS)
        except (TimeoutError, EOFError):
            self.end()
            raise OSError("the process that runs SQL queries did not start") from None

    def exchange(self, request: bytes, seconds: float) -> Any:
        """Send a request, unless empty, and return the answer.

        Raises:
            TimeoutError: there was no answer in time.
            EOFError: the process has ended.
        """
        process, deadline = self.process, time.monotonic() + seconds
        assert process is not None and process.stdin is not None and process.stdout is not None
        data = bytearray()
        try:
            if request:
                write_frame(process.stdin.fileno(), request)
            while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    raise TimeoutError
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError
                data += chunk
        except BrokenPipeError:
            raise EOFError from None
        return decode(bytes(data[8:]))

    def end(self) -> None:
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()


_process = _Process()


def same_rows(rows: Rows, gold: Rows, *, ordered: bool) -> bool:
    """Whether two results have the same rows with repetitions, if `ordered` in the same order.

    Floats are equal if 9 significant digits agree, because sums depend on the order of the rows.
    """
    rows, gold = _rounded(rows), _rounded(gold)
    return rows == gold if ordered else Counter(rows) == Counter(gold)


def extract_query(answer: str) -> str:
    """The first SQL statement of an answer, on one line, without ``;`` or a code fence."""
    fenced = re.search(r"```(?:sql)?\s(.*?)(?:```|$)", answer, re.DOTALL | re.IGNORECASE)
    text = fenced.group(1) if fenced else answer
    statement = re.match(r"""(?:[^;"']|"[^"]*"|'[^']*'|["'])*""", text)
    return " ".join(statement.group().split()) if statement else ""


def normalize_query(query: str) -> str:
    """A query with one space between tokens, double quotes, and lower case outside of quotes."""
    tokens = re.findall(r""""[^"]*"|'[^']*'|\w+|[<>=!|]+|[^\w\s;]""", query)
    return " ".join(f'"{t[1:-1]}"' if t[0] in "\"'" and len(t) > 1 else t.lower() for t in tokens)


def is_ordered(query: str) -> bool:
    """Whether a query has ORDER BY outside of parentheses, so that the order of rows matters."""
    text = re.sub(r""""[^"]*"|'[^']*'""", "", query)
    outside: list[str] = []
    opened: list[int] = []  # one pass; a regular expression would need one for each level
    for part in re.split(r"([()])", text):
        if part == ")" and opened:
            del outside[opened.pop() :]
        else:
            if part == "(":
                opened.append(len(outside))
            outside.append(part)
    return re.search(r"\border\s+by\b", "".join(outside), re.IGNORECASE) is not None


def _rounded(rows: Rows) -> Rows:
    return [tuple(float(f"{v:.9g}") if isinstance(v, float) else v for v in row) for row in rows]
