"""Model-written SQL: cutting it out of an answer, comparing it, and running it without harm.

A query runs on a read-only connection to the SQLite file under an authoriser that lets through
SELECT, reads of the file's own tables and a list of functions, so that there is no ATTACH, PRAGMA,
write, extension, recursion or function that makes long values. It ends after a number of steps of
SQLite's virtual machine, which unlike seconds is the same on every machine, and after some seconds
in any case.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

MAX_STEPS = 2_000_000  # GeoQuery's longest gold query takes 14,000; this is about 0.1 s
MAX_SECONDS = 5.0
MAX_ROWS = 10_000
MAX_LENGTH = 10_000  # characters of a query
_STEPS_A_CHECK = 1000

_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
_FUNCTION_NAMES = (
    "abs avg coalesce count dense_rank glob iif ifnull instr length like lower ltrim max min "
    "nullif rank round row_number rtrim substr substring sum total trim typeof upper"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())

Rows = list[tuple[Any, ...]]


class QueryError(Exception):
    """A query that SQLite or the limits refuse; the message says why."""


def run_query(database: Path, query: str) -> Rows:
    """The rows that a SELECT gives on an SQLite file.

    Raises:
        QueryError: not one valid SELECT, something that isn't allowed, or too long a run.
    """
    if len(query) > MAX_LENGTH:
        raise QueryError(f"query of {len(query)} characters, the limit is {MAX_LENGTH}")
    if "||" in query:
        raise QueryError("|| is not allowed: nested, it makes values that fill the memory")
    uri = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(_limit(), _STEPS_A_CHECK)
        cursor = connection.execute(query)
        columns, rows = cursor.description, cursor.fetchmany(MAX_ROWS + 1)
    # sqlite3.Warning is no sqlite3.Error: Python 3.10 raises it for a second statement.
    # The others come from text that can't be passed to SQLite: NUL, lone surrogates.
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        raise QueryError(str(error)) from None
    finally:
        connection.close()
    if columns is None:  # nothing, or a comment
        raise QueryError("no SELECT")
    if len(rows) > MAX_ROWS:
        raise QueryError(f"more than {MAX_ROWS} rows")
    return rows


def same_rows(found: Rows, gold: Rows, *, ordered: bool) -> bool:
    """Whether two results have the same rows, repeats counted, and if `ordered` in the same order.

    Floats count as equal if 9 significant digits agree: sums depend on the order of the rows.
    """
    found, gold = _rounded(found), _rounded(gold)
    return found == gold if ordered else Counter(found) == Counter(gold)


def extract_query(answer: str) -> str:
    """The first SQL statement of an answer on one line, without ``;`` and without a code fence."""
    fenced = re.search(r"```(?:sql)?\s(.*?)(?:```|$)", answer, re.DOTALL | re.IGNORECASE)
    text = fenced.group(1) if fenced else answer
    statement = re.match(r"""(?:[^;"']|"[^"]*"|'[^']*'|["'])*""", text)
    return " ".join(statement.group().split()) if statement else ""


def normalize_query(query: str) -> str:
    """A query with one space between tokens and one kind of quotes, lower case outside of them."""
    tokens = re.findall(r""""[^"]*"|'[^']*'|\w+|[<>=!|]+|[^\w\s;]""", query)
    return " ".join(f'"{t[1:-1]}"' if t[0] in "\"'" and len(t) > 1 else t.lower() for t in tokens)


def is_ordered(query: str) -> bool:
    """Whether a query has ORDER BY outside of parentheses, so that the order of rows matters."""
    text = re.sub(r""""[^"]*"|'[^']*'""", "", query)
    while (inner := re.sub(r"\([^()]*\)", "", text)) != text:
        text = inner
    return re.search(r"\border\s+by\b", text, re.IGNORECASE) is not None


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = action in _ACTIONS or (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _limit() -> Any:
    """A progress handler that interrupts at the limits."""
    deadline, checks = time.monotonic() + MAX_SECONDS, 0

    def handler() -> int:
        nonlocal checks
        checks += 1
        return checks * _STEPS_A_CHECK > MAX_STEPS or time.monotonic() > deadline

    return handler


def _rounded(rows: Rows) -> Rows:
    return [tuple(float(f"{v:.9g}") if isinstance(v, float) else v for v in row) for row in rows]
