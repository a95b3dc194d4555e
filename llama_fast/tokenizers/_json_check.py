"""Checks a tokenizer.json in a separate process before this one loads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from llama_fast._limits import limit, raise_it

from .base import MAX_VOCAB_SIZE, TokenizerError

_CHILD = Path(__file__).with_name("_json_child.py")
_checked: set[bytes] = set()  # SHA-256 of the files that passed


def check_json(path: Path, content: bytes) -> None:
    """Check that the tokenizers package loads a file and encodes a text with it.

    Args:
        path: the file, for messages.
        content: its whole content.

    Raises:
        TokenizerError: loading or encoding fails, or exceeds the limits on time or memory.
    """
    digest = hashlib.sha256(content).digest()
    if digest in _checked:
        return
    settings = {
        "path": [entry for entry in sys.path if entry],
        "memory": limit("tokenizer-memory"),
        "seconds": limit("tokenizer-seconds"),
        "tokens": MAX_VOCAB_SIZE,
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
            f"loading it takes more than {settings['seconds']} s of CPU time or "
            f"{settings['memory']:,} bytes of memory, or crashes (status {done.returncode}); "
            f"{raise_it('tokenizer-memory')}"
        )
    if problem is not None:
        raise TokenizerError(f"{path}: not a tokenizer.json: {problem}")
    _checked.add(digest)
