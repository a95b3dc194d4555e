"""Trying a tokenizer.json in a process of its own, before this one loads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from llama_fast._limits import limit, raise_it

from .base import MOST_TOKENS, TokenizerError

_CHILD = Path(__file__).with_name("_json_child.py")
_tried: set[bytes] = set()  # hashes of what loaded


def try_json(path: Path, content: bytes) -> None:
    """See that the tokenizers package loads a file and encodes a text with it.

    Args:
        path: of the file, for messages.
        content: all of it.

    Raises:
        TokenizerError: it does not, or takes more time or memory than the limits.
    """
    digest = hashlib.sha256(content).digest()
    if digest in _tried:
        return
    settings = {
        "path": [entry for entry in sys.path if entry],
        "memory": limit("tokenizer-memory"),
        "seconds": limit("tokenizer-seconds"),
        "tokens": MOST_TOKENS,
    }
    done = subprocess.run(
        [sys.executable, "-I", str(_CHILD)],
        input=json.dumps(settings).encode() + b"\n" + content,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        problem = json.loads(done.stdout)
    except ValueError:
        problem = (
            f"to load it takes more than {settings['seconds']} s of CPU time or "
            f"{settings['memory']:,} bytes of memory, or ends the process (status "
            f"{done.returncode}); {raise_it('tokenizer-memory')}"
        )
    if problem is not None:
        raise TokenizerError(f"{path}: not a tokenizer.json: {problem}")
    _tried.add(digest)
