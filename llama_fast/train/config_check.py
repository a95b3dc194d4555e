"""Checks the names and types of a configuration, with messages in the words of its user."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from llama_fast.train.config import TrainConfig

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text (in quotes)"}


def option_types(cls: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name of each option, such as ``optimizer.lr``, and its type."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from option_types(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


OPTIONS = dict(option_types())
SECTIONS = {name.split(".")[0] for name in OPTIONS if "." in name}


def check_values(where: str, values: Mapping[Any, Any], dashes: str = "") -> None:
    """Check the options in a YAML file's content or on a command line.

    Args:
        where: text before an option's name in messages, such as ``train.yaml: ``.
        values: option or section -> value.
        dashes: "--" if the user types the names with them.

    Raises:
        ValueError: an option does not exist, or its value has another type. The message names the
            option and, for an unknown one, the most similar option.
    """
    for name, value in _flat(values):
        known, typed = _type_of(name), dashes + (name.replace("_", "-") if dashes else name)
        if known is None:
            raise ValueError(f"{where}{typed}: no such option{_nearest(name, dashes)}")
        if name in SECTIONS:
            if value is not None and not isinstance(value, str):  # a file of the section
                raise ValueError(
                    f"{where}{typed}: expected options of this section, got {_shown(value)}"
                )
        elif not _fits(value, known):
            raise ValueError(f"{where}{typed}: expected {_words(known)}, got {_shown(value)}")


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and (name in SECTIONS or _type_of(name) is None):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _type_of(name: str) -> Any:
    """The type of an option; of a key in a dictionary, any; None if there is no such option."""
    if name in SECTIONS:
        return Mapping
    if name in OPTIONS:
        return OPTIONS[name]
    owner = name.rpartition(".")[0]
    return Any if owner and typing.get_origin(OPTIONS.get(owner)) is dict else None


def _nearest(name: str, dashes: str) -> str:
    last = {option.rpartition(".")[2]: option for option in OPTIONS}  # `lr` for `optimizer.lr`
    similar = difflib.get_close_matches(name, [*OPTIONS, *SECTIONS], 1, 0.7)
    similar = similar or [last[m] for m in difflib.get_close_matches(name.rpartition(".")[2], last)]
    if not similar:
        return ""
    return f"; did you mean {dashes}{similar[0].replace('_', '-') if dashes else similar[0]}?"


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (list, dict):
        return isinstance(value, origin)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool) or value in ("true", "false")
    if hint is str:
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if hint is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, (int, float)) or _is_number(value)


def _is_number(value: Any) -> bool:
    """Whether a value is a number for everybody but YAML 1.1, as the text 1e-4 is."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _words(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [p for p in typing.get_args(hint) if p is not type(None)]
        return " or ".join([*map(_words, parts), "null"])
    if origin is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if origin in (list, dict):
        return "a list" if origin is list else "a mapping"
    return _WORDS.get(hint, str(hint))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)[:80]
