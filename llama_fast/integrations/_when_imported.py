"""Runs an action once a module has been imported, without importing it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call `action` after the module `name` is imported, at once if it already is."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(name, action))


def when_any_imported(
    chosen: Callable[[str], bool], action: Callable[[ModuleType], None]
) -> Callable[[], None]:
    """Call ``action(module)`` after each import of a module whose name is `chosen`.

    Returns:
        A function that ends this.
    """
    finder = _ManyFinder(chosen, action)
    sys.meta_path.insert(0, finder)
    return lambda: sys.meta_path.remove(finder)


class _ManyFinder(importlib.abc.MetaPathFinder):
    """Delegates to the other finders and wraps the loaders of some modules."""

    def __init__(self, chosen: Callable[[str], bool], action: Callable[[ModuleType], None]) -> None:
        self.chosen, self.action = chosen, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's spec from the other finders; None for modules that are not chosen."""
        if not self.chosen(fullname):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find and find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, lambda: self.action(sys.modules[fullname]))
                return spec
        return None


class _Finder(importlib.abc.MetaPathFinder):
    """Delegates to the other finders and wraps the loader of one module."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's spec from the other finders; None for all other modules."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.action)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader that runs an action after it has executed a module."""

    def __init__(self, loader: Any, action: Callable[[], None]) -> None:
        self.loader, self.action = loader, action

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the wrapped loader."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the wrapped loader, then the action."""
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.action()
