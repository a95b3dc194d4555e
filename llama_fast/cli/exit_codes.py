"""Exit codes of `llama-fast`, and which exception leads to which.

| code | name        | meaning                                                                    |
|------|-------------|----------------------------------------------------------------------------|
| 0    | OK          | the command did what was asked                                             |
| 1    | NEGATIVE    | the command ran, and its result is negative: a check or a task failed;     |
|      |             | also an internal error (with a traceback), or a closed output pipe         |
| 2    | BAD_INPUT   | wrong usage or input: an option, a missing or damaged file, a package that |
|      |             | is not installed, a model that does not fit into memory                    |
| 130  | INTERRUPTED | Ctrl-C (SIGINT)                                                            |
| 143  | TERMINATED  | SIGTERM, from a scheduler for example; a training run has saved its state  |

A command returns OK or NEGATIVE and raises everything else. `llama_fast.cli.main` turns exceptions
into one line on standard error and the code.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class ExitCode(enum.IntEnum):
    """Exit code of a command; see the table of this module."""

    OK = 0
    NEGATIVE = 1
    BAD_INPUT = 2
    INTERRUPTED = 130
    TERMINATED = 143


# Raised for bad input: a wrong value, a missing file, an extra that is not installed, a loss that
# is not finite, a model that does not fit. Other exceptions are faults and keep their traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)


class CommandError(Exception):
    """Ends a command with a message of one or more lines, which is printed as it is.

    Args:
        message: what went wrong, and what to do about it.
        code: the process's exit code.
    """

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def message_of(error: Exception, options: Mapping[str, str]) -> str:
    """Return the text to print for an exception: a line, or more for a :class:`CommandError`.

    Args:
        error: the exception. Where its message begins with the name of a function's argument, as in
            ``max_batch: expected ...``, the option that gave the argument is named instead.
        options: name of each of the command's values -> the option as it is typed.
    """
    if isinstance(error, CommandError):
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    name, colon, rest = text.partition(":")
    return f"{options[name]}{colon}{rest}" if colon and name in options else text


def code_of(error: Exception) -> ExitCode | None:
    """Return the exit code for an exception, None if its traceback is to be shown."""
    if isinstance(error, CommandError):
        return error.code
    return ExitCode.BAD_INPUT if isinstance(error, USER_ERRORS) else None
