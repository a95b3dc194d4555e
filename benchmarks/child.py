"""Worker processes with a JSON protocol: one object per line in each direction."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_fast


class Child:
    """A worker process of this package: call `ask` any number of times, then `close`.

    Args:
        role: name of a module of this package: "memory", "training" or "train_sides".
        settings: argument of the module's `serve` function.
        environment: environment variables to add to those of this process.
    """

    def __init__(
        self, role: str, settings: dict[str, Any], environment: dict[str, str] | None = None
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llama_fast.cli.bench", role, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | (environment or {}),
            cwd=Path(llama_fast.__file__).parents[1],  # so that it imports the same package
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question and return the answer.

        Raises:
            RuntimeError: the process has ended; the message quotes the end of its output.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        output = "".join(self._errors.readlines()[-5:]).strip()
        raise RuntimeError(f"{output}\nthe process ended with code {code}".strip())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class Questions:
    """The worker's side: reads questions one after the other."""

    def __init__(self) -> None:
        # Output of libraries must not get between the answers.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def next(self) -> dict[str, Any] | None:
        """The next question; None if there are no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def answer(self, said: dict[str, Any]) -> None:
        """Answer the last question."""
        self._out.write(json.dumps(said) + "\n")
        self._out.flush()


def answers(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The worker's side: answer questions until there are no more."""
    questions = Questions()
    while (question := questions.next()) is not None:
        questions.answer(answer(question))
