"""The child process that renders chat templates. It is run by path, so it starts without torch.

It answers requests from standard input until that is closed. A request that exceeds a limit
terminates this process, not its parent.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MAX_CACHED_TEMPLATES = 32


def main() -> None:
    """Answer requests: they are read as marshal and answered as JSON, each after its length."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    path, memory = _receive(requests)
    sys.path[:] = path
    language = _language()
    _limit_memory(memory)
    compiled: dict[str, Any] = {}
    while (request := _receive(requests)) is not None:
        source, context, marks, seconds, max_length = request
        _limit_time(seconds)
        answer = _answer(language, compiled, source, context, marks, max_length)
        content = json.dumps(answer).encode()
        answers.write(len(content).to_bytes(8, "little") + content)
        answers.flush()


def _answer(
    language: Any,
    compiled: dict[str, Any],
    source: str,
    context: dict[str, Any] | None,
    marks: str,
    max_length: int,
) -> dict[str, Any]:
    """Return the rendered text (without a context: whether answers are marked), or the error."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        if source not in compiled:
            if len(compiled) >= MAX_CACHED_TEMPLATES:
                compiled.clear()
            compiled[source] = language.compile_template(source)
        template = compiled[source]
        if context is None:
            return {"marks": language.marks_answers(template)}
        language.generation_marks.set(marks)
        text = template.render(context)
    except TemplateSyntaxError as error:
        return {"syntax": str(error.message), "line": error.lineno}
    except TemplateError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"memory": True}
    except Exception as error:  # a template can raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    return {"text": text} if len(text) <= max_length else {"length": len(text)}


def _receive(requests: IO[bytes]) -> Any:
    header = requests.read(8)
    if len(header) < 8:
        return None
    return marshal.loads(requests.read(int.from_bytes(header, "little")))


def _language() -> Any:
    file = Path(__file__).with_name("template_language.py")
    spec = importlib.util.spec_from_file_location("template_language", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _limit_memory(max_bytes: int) -> None:
    pages = Path("/proc/self/statm")
    if resource is None or not pages.exists():
        return
    used = int(pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + max_bytes, used + max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: int) -> None:
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, hard))


if __name__ == "__main__":
    main()
