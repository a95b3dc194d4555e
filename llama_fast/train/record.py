"""``run.json``: the provenance of a run. Each start of the run adds an entry."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from llama_fast._inside import inside
from llama_fast._reading import file_sha256, read_json
from llama_fast._write import write_whole
from llama_fast.data import DataError, TokenShards
from llama_fast.info import collect
from llama_fast.train.config import TrainConfig
from llama_fast.train.metrics import naming_file

RECORD = "run.json"
_PACKAGE = Path(__file__).parents[1]


def code_sha256(package: Path = _PACKAGE) -> str:
    """SHA-256 of the names and contents of a package's Python files and native libraries."""
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".so"))
    lines = (f"{path.relative_to(package).as_posix()} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def git_commit(package: Path = _PACKAGE) -> str | None:
    """Commit of the git checkout that contains a package, with "+changes" if files differ from it.

    None if it is not in a checkout, or git is not installed.
    """
    git = shutil.which("git")
    if git is None or not (package.parent / ".git").exists():
        return None

    def run_git(*arguments: str) -> str:
        command = [git, "-C", str(package.parent), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return result.stdout.strip()

    try:
        commit = run_git("rev-parse", "HEAD")
        return commit + ("+changes" if run_git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def entry(
    config: TrainConfig, train: TokenShards, valid: TokenShards | None, step: int
) -> dict[str, Any]:
    """Describe a start of a run as a JSON object: configuration, data, code and machine.

    Args:
        config: the run's configuration.
        train, valid: its data.
        step: number of steps done before.
    """
    settings = dataclasses.asdict(config)
    text = json.dumps(settings, sort_keys=True)
    data = {"train": train} if valid is None else {"train": train, "valid": valid}
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "after_step": step,
        "command": sys.argv,
        "config": settings,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "data": {
            name: {
                "folder": str(Path(shards.folder).resolve()),
                "content_sha256": shards.content_sha256,
                "tokens": shards.num_tokens,
            }
            for name, shards in data.items()
        },
        "code": {"sha256": code_sha256(), "commit": git_commit()},
        "machine": collect(),
    }


def add_entry(folder: Path, start: dict[str, Any]) -> str:
    """Append an entry to ``run.json`` in a run's folder.

    Args:
        folder: the run's folder.
        start: the result of :func:`entry`.

    Returns:
        The id of the run, 12 hexadecimal digits.

    Raises:
        DataError: the file has other content.
        OSError: the file cannot be written.
    """
    path = inside(folder, RECORD, folder, DataError)
    record: dict[str, Any] = {"id": uuid.uuid4().hex[:12], "starts": []}
    if path.exists():
        try:
            record = read_json(path)
            record["starts"].append(start)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: expected the record of a run, got something else") from None
    else:
        record["starts"].append(start)
    with naming_file(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(record, indent=1))
    return str(record.get("id"))
