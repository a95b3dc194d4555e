"""Remote access from the tests to the program, by requests and answers that contain data only.

The tests see the program's functions and objects as :class:`Remote`. Operations on one (calls,
attributes, iteration) run in the program's process and return data. Remotes compare by identity, so
a program's ``__eq__`` is not used. The program can reach nothing of the tests except functions that
a test passes as arguments, which it can only call.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from .frames import FormatError, read_frame, write_frame
from .values import MAX_BYTES, decode, encode

__all__ = ["Ended", "Peer", "ProgramExit", "Remote", "describe"]

_ERROR_CHARACTERS = 500


class Ended(BaseException):
    """The other process closed the connection. Not an Exception, so that tests cannot catch it."""


class ProgramExit(BaseException):
    """The program raised a BaseException such as SystemExit, or violated the format."""


class RemoteError(Exception):
    """An exception of a class that the program defines."""


class Remote:
    """An object of the other process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_Remote__at", (peer, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the other process."""
        return self.__do("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__do("getitem", key)

    def __iter__(self) -> Any:
        return self.__do("iter")

    def __next__(self) -> Any:
        return self.__do("next")

    def __len__(self) -> int:
        return self.__do("len")

    def __bool__(self) -> bool:
        return self.__do("bool")

    def __repr__(self) -> str:
        return self.__do("repr")

    def __str__(self) -> str:
        return self.__do("str")

    def __do(self, action: str, *arguments: Any) -> Any:
        peer, number = self.__at
        return peer.ask(action, number, *arguments)


# Operations that the program's process performs on its objects.
_ACTIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "repr": repr,
    "str": str,
}


class Peer:
    """One end of the connection.

    Args:
        read, write: file descriptors.
        side: "program", or "tests", which exports functions only, for calls only.
    """

    def __init__(self, read: int, write: int, side: str) -> None:
        self.read, self.write, self.side = read, write, side
        self.own: list[Any] = []  # exported objects by number; kept so that ids stay valid
        self.numbers: dict[int, int] = {}  # id -> number
        self.remotes: dict[int, Any] = {}
        self.names: dict[str, Any] = {"__name__": "__main__"}  # the program's

    def ask(self, action: str, *arguments: Any) -> Any:
        """Run an operation in the other process and return its result.

        Raises:
            Ended: the other process closed the connection.
            ProgramExit: it violated the format, or raised a BaseException such as SystemExit.
            FormatError: an argument is too large or can neither be passed as data nor exported.
            Exception: the exception that the operation raised.
        """
        self._send(b"Q", [action, *arguments])
        while True:
            try:
                tag, message = self._receive()
            except FormatError as error:
                raise ProgramExit(describe(error)) from None
            if tag == b"A":
                return message
            if tag == b"E":
                raise _exception(message)
            self._answer(message)  # the program calls a function of the tests

    def serve(self) -> None:
        """Answer requests until the other process closes the connection."""
        while True:
            try:
                tag, message = self._receive()
            except Ended:
                return
            if tag == b"Q":
                self._answer(message)

    def _answer(self, request: Any) -> None:
        try:
            if type(request) is not list or not request:
                raise FormatError("no request")
            answer = self._do(*request)
            self._send(b"A", answer)
        except (Ended, ProgramExit):
            raise
        except BaseException as error:
            name, text, ordinary = type(error).__name__, _text(error), isinstance(error, Exception)
            if self.side == "tests" and not ordinary:
                raise
            self._send(b"E", [name, text, ordinary])

    def _do(self, action: str, *arguments: Any) -> Any:
        if self.side == "tests":
            if action == "bool":
                return True
            if action != "call":
                raise FormatError("functions of the tests can only be called")
        elif action == "load":
            exec(compile(arguments[0], "<program>", "exec"), self.names)
            return None
        elif action == "names":
            return [[n, *_name(self.names[n])] for n in arguments[0] if n in self.names]
        number, *rest = arguments
        return _ACTIONS[action](self.own[number], *rest)

    def _send(self, tag: bytes, message: Any) -> None:
        data = tag + encode(message, self._export)
        try:
            write_frame(self.write, data)
        except BrokenPipeError:
            raise Ended from None

    def _receive(self) -> tuple[bytes, Any]:
        data = read_frame(self.read, MAX_BYTES + 1)
        if data is None:
            raise Ended
        return data[:1], decode(data[1:], self._import)

    # Each side numbers its own objects from 0. In a message, 2 n is object n of the sender and
    # 2 n + 1 object n of the receiver.
    def _export(self, value: Any) -> int:
        if type(value) is Remote:
            return 2 * object.__getattribute__(value, "_Remote__at")[1] + 1
        functions = FunctionType, BuiltinFunctionType
        if self.side == "tests" and not isinstance(value, functions):
            raise FormatError(f"tests cannot pass a {type(value).__name__} to the program")
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.own)
            self.own.append(value)
        return 2 * self.numbers[id(value)]

    def _import(self, number: int) -> Any:
        number, own = divmod(number, 2)
        if own:
            return self.own[number]
        if number not in self.remotes:
            self.remotes[number] = Remote(self, number)
        return self.remotes[number]


def _name(value: Any) -> tuple[str, Any]:
    """("module", name) for a module, which the tests import themselves; else ("value", value)."""
    return ("module", value.__name__) if isinstance(value, ModuleType) else ("value", value)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_ERROR_CHARACTERS]
    except Exception:
        return ""


def _exception(message: Any) -> BaseException:
    """The exception of the other process: a built-in one, or a RemoteError with its name."""
    name, text, ordinary = message if type(message) is list and len(message) == 3 else [0, 0, 0]
    if not (type(name) is str and type(text) is str and name.isidentifier()):
        return ProgramExit("FormatError: no exception")
    if not ordinary:
        return ProgramExit(f"{name}: {text}")
    cls: Any = getattr(builtins, name, None)
    own = type(name, (RemoteError,), {})(text)
    try:
        return cls(text) if isinstance(cls, type) and issubclass(cls, Exception) else own
    except TypeError:  # classes with more arguments, such as UnicodeDecodeError
        return own


def describe(error: BaseException) -> str:
    """The exception's class and text."""
    if isinstance(error, ProgramExit):
        return str(error)[:_ERROR_CHARACTERS]
    return f"{type(error).__name__}: {_text(error)}"[:_ERROR_CHARACTERS]
