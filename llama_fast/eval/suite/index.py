"""Finds lm-eval's tasks by name without indexing all of its files.

The harness parses 14,000 YAML files to collect task names, which takes most of a minute. Searching
them for the lines with names takes half a second. Only the folders of the required files are then
indexed.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["known_names", "task_manager", "unknown_task"]

_NAME = re.compile(
    rb"^[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([A-Za-z0-9][^\s\"'#\[\]]*)", re.M
)
_TAGS = re.compile(rb"^[\"']?tag[\"']?\s*:[ \t]*\n((?:[ \t]*- .*\n)+)", re.M)


@cache
def known_names() -> dict[str, tuple[Path, ...]]:
    """Task, group or tag of the installed lm-eval -> the files that define it."""
    import lm_eval.tasks

    root = os.path.dirname(lm_eval.tasks.__file__)
    result: dict[str, set[str]] = {}
    for folder, _, files in os.walk(root):
        for file in files:
            if not file.endswith(".yaml"):
                continue
            path = os.path.join(folder, file)
            with open(path, "rb") as handle:
                text = handle.read()
            names = _NAME.findall(text)
            for block in _TAGS.findall(text):
                names += re.findall(rb"- *[\"']?([^\s\"']+)", block)
            for name in names:
                result.setdefault(name.decode(), set()).add(path)
    return {name: tuple(Path(path) for path in sorted(paths)) for name, paths in result.items()}


def unknown_task(name: str, own: list[str]) -> ValueError:
    """The error for a task that neither the harness nor this package has.

    Args:
        name: the unknown name.
        own: names of this package's own tasks and presets.
    """
    near = get_close_matches(name, own, n=2, cutoff=0.6)
    near += [n for n in get_close_matches(name, known_names(), n=5, cutoff=0.6) if n not in near]
    advice = f"; the nearest names: {', '.join(near)}" if near else ""
    return ValueError(f"tasks: unknown task {name!r}{advice}")


@cache
def _manager(folders: tuple[Path, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=list(folders))


def task_manager(names: list[str]) -> Any:
    """An ``lm_eval.tasks.TaskManager`` with ``names`` and all their members."""
    known = known_names()
    folders: set[Path] = set()
    pending = list(names)
    seen: set[str] = set()
    manager = None
    while pending:
        new = {path.parent for name in pending for path in known.get(name, ())} - folders
        seen.update(pending)
        if new or manager is None:
            folders |= new
            manager = _manager(tuple(sorted(folders)))
        members: list[str] = []
        for name in pending:
            entry = manager.task_index.get(name)
            config = (entry.cfg or {}) if entry is not None else {}
            members += _members(config.get("task"))
        pending = [name for name in dict.fromkeys(members) if name not in seen]
    return manager


def _members(task: Any) -> list[str]:
    """Names in a group's list of tasks, including those of inline groups."""
    names = []
    for item in task if isinstance(task, list) else ():
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, dict):
            own = item.get("task")
            names += [own] if isinstance(own, str) else _members(own)
            names += [item["group"]] if isinstance(item.get("group"), str) else []
    return names
