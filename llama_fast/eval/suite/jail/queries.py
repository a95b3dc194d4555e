"""The process that runs model-written SQL, one query at a time.

SQLite calls no handler while it parses a query, and short queries can then fill the memory or take
minutes. So its heap is limited, and the parent kills this process at the time limit.
"""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from typing import Any

from .frames import read_frame, write_frame
from .values import decode, encode

__all__ = ["MAX_MEMORY_MB", "MAX_ROWS", "MAX_SECONDS", "MAX_STEPS", "main"]

MAX_STEPS = 2_000_000  # GeoQuery's longest gold query takes 14,000; this is about 0.1 s
MAX_SECONDS = 5.0
MAX_ROWS = 10_000
MAX_MEMORY_MB = 64  # of SQLite; GeoQuery's gold queries take less than 1
_STEPS_A_CHECK = 1000

_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
_FUNCTION_NAMES = (
    "abs avg coalesce count dense_rank glob iif ifnull instr length like lower ltrim max min "
    "nullif rank round row_number rtrim substr substring sum total trim typeof upper"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


def main() -> None:
    """Answer requests [URI, query] with [true, rows] or [false, reason] until the input ends."""
    _limit_process()
    write_frame(1, encode([True, []]))  # ready
    while (request := read_frame(0)) is not None:
        _limit_processor()
        uri, query = decode(request)
        write_frame(1, _answer(uri, query))


def _answer(uri: str, query: str) -> bytes:
    try:
        return encode([True, _rows(uri, query)])
    # sqlite3.Warning is not an sqlite3.Error; Python 3.10 raises it for a second statement.
    # The others come from text that can't be passed to SQLite: NUL, lone surrogates.
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        return encode([False, str(error)])
    except MemoryError:
        return encode([False, f"more than {MAX_MEMORY_MB} MiB of memory"])


def _rows(uri: str, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA hard_heap_limit = {MAX_MEMORY_MB << 20}").fetchall()
        connection.execute("PRAGMA temp_store = memory")
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(_Steps(), _STEPS_A_CHECK)
        cursor = connection.execute(query)
        columns, rows = cursor.description, cursor.fetchmany(MAX_ROWS + 1)
    finally:
        connection.close()
    if columns is None:  # nothing, or a comment
        raise ValueError("no SELECT")
    if len(rows) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} rows")
    return rows


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = action in _ACTIONS or (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class _Steps:
    """A progress handler that interrupts at the limit."""

    def __init__(self) -> None:
        self.checks = 0

    def __call__(self) -> bool:
        self.checks += 1
        return self.checks * _STEPS_A_CHECK > MAX_STEPS


def _limit_process() -> None:
    """Limit memory (a build without statistics ignores the heap limit) and forbid files."""
    for resource_id, value in (
        (resource.RLIMIT_AS, 1 << 30),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # not every system has all of them
            resource.setrlimit(resource_id, (value, value))


def _limit_processor() -> None:
    """Limit processor time, for queries that run on after the parent has ended."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + MAX_SECONDS) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
