"""The process that checks a tokenizer.json. It is run by its path, so it does not import torch.

A separate process is needed because the tokenizers package aborts the process when it runs out of
memory, without an exception.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Contains every kind of character that a normalizer may expand.
SAMPLE = (
    "".join(map(chr, range(32, 127))) * 4
    + "\t\n\r 0123 ÄÖÜäöüßéñçàâ ﬁ½Å가日本語中文кириллица🙂"
    + " " * 64
)


def main() -> None:
    """Read settings (a line) and a file from standard input; print what is wrong as JSON."""
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = settings["path"]
    _limit(settings["memory"], settings["seconds"])
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode("utf-8"))
        backend.no_truncation()
        backend.no_padding()
        problem = _problem(backend, settings["tokens"])
    except BaseException as error:  # a panic is not an Exception
        problem = str(error)[:500] or type(error).__name__
    sys.stdout.write(json.dumps(problem))


def _problem(backend: Any, max_vocab_size: int) -> str | None:
    if (highest := max(backend.get_vocab().values(), default=0)) >= max_vocab_size:
        return f"expected ids below {max_vocab_size:,}, got {highest:,}"
    for text in ("a", SAMPLE):
        try:
            encoding = backend.encode(text, add_special_tokens=True)
        except Exception:  # unknown characters: an error only for texts that contain them
            continue
        backend.decode(encoding.ids)
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
