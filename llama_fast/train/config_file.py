"""Whether a YAML file can be a training configuration, before its content is built.

An alias costs nothing to load, but everything that copies, compares or shows the content follows
it: nine lines of nine aliases each are a billion values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_fast._limits import limit, raise_it
from llama_fast._reading import read_at_most

MOST_VALUES = 10_000  # aliases counted as what they stand for
MOST_LEVELS = 20
LONGEST_VALUE = 10_000  # characters; a number in base 60 takes the square of its length


def check_yaml(path: Path) -> None:
    """See that a configuration is small, aliases followed.

    Args:
        path: of a YAML file; one that is not there is left to whoever reads it.

    Raises:
        ValueError: it is larger than the limit "yaml", no YAML, or its values or levels are too
            many; the message names the file.
    """
    import yaml

    if not path.is_file():
        return
    most = limit("yaml")
    with path.open("rb") as file:
        content = read_at_most(file, most)
    if len(content) > most:
        raise ValueError(f"{path}: expected at most {most:,} bytes, got more; {raise_it('yaml')}")
    try:
        _check_events(path, yaml.parse(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())[:300]}") from None


def _check_events(path: Path, events: Any) -> None:
    import yaml

    sizes: dict[str, int] = {}  # of what an anchor names
    opened: list[tuple[str | None, int]] = []  # (anchor, values before it) of each level
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"{path}: alias {event.anchor!r:.80}: expected an earlier value")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if len(event.value) > LONGEST_VALUE:
                raise ValueError(f"{path}: expected values of at most {LONGEST_VALUE} characters")
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            count += 1
            opened.append((event.anchor, count - 1))
            if event.anchor is not None:  # it may not name itself
                sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if count > MOST_VALUES or len(opened) > MOST_LEVELS:
            raise ValueError(
                f"{path}: expected at most {MOST_VALUES:,} values, aliases followed, in "
                f"{MOST_LEVELS} levels, got more"
            )
