"""Renders chat templates in a child process that can be stopped.

A template is a program: it may loop or write forever within one library call, which cannot be
interrupted from Python. Jinja's sandbox prevents access to files, but not endless loops.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import marshal
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from llama_fast._limits import limit, raise_it
from llama_fast.data.template_language import compile_template, generation_marks

_CHILD = Path(__file__).with_name("_template_child.py")


class BoundedTemplate:
    """A template whose renderings are limited in CPU time, memory and length.

    Args:
        source: Jinja source.

    Attributes:
        marks_answers: whether it has ``{% generation %}`` blocks.

    Raises:
        jinja2.TemplateSyntaxError: `source` is not valid Jinja.
        jinja2.TemplateError: compiling it exceeds a limit.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks_answers = bool(_ask(source, None)["marks"])

    def render(self, context: dict[str, Any]) -> str:
        """Render the template.

        Args:
            context: the template's variables.

        Raises:
            jinja2.TemplateError: the template failed, or exceeded a limit.
        """
        try:
            marshal.dumps(context)
        except ValueError:  # objects that cannot be sent to another process
            return str(compile_template(self.source).render(context))
        return str(_ask(self.source, context)["text"])


def _ask(source: str, context: dict[str, Any] | None) -> dict[str, Any]:
    answer = _process().ask(source, context)
    if "syntax" in answer:
        raise TemplateSyntaxError(answer["syntax"], answer["line"])
    if "error" in answer:
        raise TemplateError(answer["error"])
    if "memory" in answer:
        raise TemplateError(_too_much("template-memory", "bytes of memory"))
    if "length" in answer:
        raise TemplateError(_too_much("template-text", "characters"))
    return answer


def _too_much(name: str, unit: str) -> str:
    return f"expected at most {limit(name):,} {unit}, used more; {raise_it(name)}"


class _Process:
    """The child process that renders; it is restarted after it was stopped."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None

    def ask(self, source: str, context: dict[str, Any] | None) -> dict[str, Any]:
        seconds, max_length = limit("template-seconds"), limit("template-text")
        with self.lock:
            try:
                child = self.child or self._start()
                _send(child, (source, context, generation_marks.get(), seconds, max_length))
                answer = _receive(child)
            except BaseException as error:
                status = self._stop()
                if isinstance(error, (EOFError, BrokenPipeError)):
                    raise TemplateError(_reason(status)) from None
                raise  # after an interrupt the next request would get this request's answer
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self.child = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _send(self.child, ([entry for entry in sys.path if entry], limit("template-memory")))
        return self.child

    def _stop(self) -> int:
        child, self.child = self.child, None
        if child is None:
            return 0
        for pipe in (child.stdout, child.stdin):
            with contextlib.suppress(OSError):  # unsent data
                pipe.close()  # type: ignore[union-attr]
        child.kill()
        return child.wait()


def _reason(status: int) -> str:
    if status == -getattr(signal, "SIGXCPU", 0):
        return _too_much("template-seconds", "s of CPU time")
    return (
        f"{_too_much('template-memory', 'bytes of memory')} (the rendering process ended "
        f"with status {status})"
    )


def _send(child: subprocess.Popen[bytes], message: Any) -> None:
    content = marshal.dumps(message)
    assert child.stdin is not None
    child.stdin.write(len(content).to_bytes(8, "little") + content)
    child.stdin.flush()


def _receive(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert child.stdout is not None
    header = child.stdout.read(8)
    if len(header) < 8:
        raise EOFError
    content = child.stdout.read(int.from_bytes(header, "little"))
    answer = json.loads(content)
    if not isinstance(answer, dict):
        raise EOFError
    return answer


_processes: dict[int, _Process] = {}


def _process() -> _Process:
    """This process's child. Each forked process needs its own, or answers would be mixed up."""
    owner = os.getpid()
    if owner not in _processes:
        _processes[owner] = process = _Process()
        atexit.register(lambda: process._stop() if os.getpid() == owner else None)
    return _processes[owner]
