"""Reads what the build recorded of itself: what was compiled, what was not, and why."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

RECORD = Path(__file__).with_name("_build.json")


@cache
def build_facts() -> dict[str, Any]:
    """The record of the build (llama_fast/_build.json); empty if nothing was built."""
    try:
        facts: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    except OSError:
        return {}
    return facts


def why_not_built(part: str) -> str | None:
    """Why a part ("ops library", "CUDA") was not built, in one line; None if it was, or unknown."""
    entry = build_facts().get("parts", {}).get(part)
    return None if entry is None or entry["built"] else entry["detail"]


def retry_command() -> str:
    """The command that builds the missing parts, or fails with all of the compiler's output."""
    source = _source_folder()
    if source is None:
        # A wheel that pip built before would be taken from its cache.
        source, more = "llama_fast", "--no-binary llama_fast --no-cache-dir "
    else:
        source, more = shlex.quote(source), ""
    return f"LLAMA_FAST_BUILD=1 pip install --force-reinstall --no-deps {more}{source}"


def _source_folder() -> str | None:
    """The local folder or archive that the package was installed from, if it was."""
    package = Path(__file__).parent
    if (package.parent / "setup.py").is_file():  # a checkout
        return str(package.parent)
    try:
        text = importlib.metadata.distribution("llama_fast").read_text("direct_url.json")
        url = urlsplit(json.loads(text or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    path = unquote(url.path)
    return path if url.scheme == "file" and not path.endswith(".whl") else None
