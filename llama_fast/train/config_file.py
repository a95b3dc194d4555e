"""Reads YAML files, whose size is checked before their content is built.

Loading an alias costs nothing, but copying, comparing or printing the content expands it: nine
lines of nine aliases each are a billion values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_fast._limits import limit, raise_it
from llama_fast._reading import read_at_most

MAX_VALUES = 10_000  # with aliases expanded
MAX_LEVELS = 20
MAX_LENGTH = 10_000  # characters; parsing a number in base 60 takes quadratic time


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the options in a configuration file; an empty file has none.

    Args:
        path: path of the YAML file.

    Raises:
        ValueError: the file is larger than the limit "yaml", is not YAML, has too many values or
            levels with aliases expanded, or is not a mapping; the message names the file.
    """
    import yaml

    max_bytes = limit("yaml")
    with path.open("rb") as file:
        content = read_at_most(file, max_bytes)
    if len(content) > max_bytes:
        raise ValueError(
            f"{path}: expected at most {max_bytes:,} bytes, got more; {raise_it('yaml')}"
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(path, yaml.parse(content, loader))
        found = yaml.load(content, loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())[:300]}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ValueError(f"{path}: expected options such as `steps: 100`, got {kind} {found!r:.80}")
    return found


def _check_events(path: Path, events: Any) -> None:
    import yaml

    sizes: dict[str, int] = {}  # anchor -> number of values in it
    opened: list[tuple[str | None, int]] = []  # (anchor, values before it) of each open level
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(
                    f"{path}: alias {event.anchor!r:.80}: expected an anchor before it"
                )
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if len(event.value) > MAX_LENGTH:
                raise ValueError(f"{path}: expected values of at most {MAX_LENGTH} characters")
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            count += 1
            opened.append((event.anchor, count - 1))
            if event.anchor is not None:  # an anchor may not contain itself
                sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if count > MAX_VALUES or len(opened) > MAX_LEVELS:
            raise ValueError(
                f"{path}: expected at most {MAX_VALUES:,} values, with aliases expanded, in "
                f"{MAX_LEVELS} levels, got more"
            )
