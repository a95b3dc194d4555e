"""The process that tries a tokenizer.json: run by path, so that it starts without torch.

The tokenizers package ends the process where it runs out of memory, and no exception stops it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Of every kind of character that a normalizer may turn into many.
TRIAL = (
    "".join(map(chr, range(32, 127))) * 4
    + "\t\n\r 0123 ÄÖÜäöüßéñçàâ ﬁ½Å가日本語中文кириллица🙂"
    + " " * 64
)


def main() -> None:
    """Load what standard input holds behind a line of settings, and say what is wrong."""
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = settings["path"]
    _limit(settings["memory"], settings["seconds"])
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode("utf-8"))
        backend.no_truncation()
        backend.no_padding()
        problem = _problem(backend, settings["tokens"])
    except BaseException as error:  # a panic is no Exception
        problem = str(error)[:500] or type(error).__name__
    sys.stdout.write(json.dumps(problem))


def _problem(backend: Any, most: int) -> str | None:
    if (highest := max(backend.get_vocab().values(), default=0)) >= most:
        return f"expected ids below {most:,}, got {highest:,}"
    for text in ("a", TRIAL):
        try:
            found = backend.encode(text, add_special_tokens=True)
        except Exception:  # letters that it does not know: that is said where a text has them
            continue
        backend.decode(found.ids)
    return None


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if Path("/proc/self/statm").exists():
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    main()
