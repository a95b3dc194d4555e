"""How the tests of a program use it, from another process: requests and answers, data alone.

The tests see the program's functions and objects as :class:`Remote`: what is done to one (a call,
an attribute, an iteration) is done by the program's process, and only data comes back. Remotes are
compared by identity, so a program's ``__eq__`` has no say, and nothing of the tests can be reached
from it but the functions that a test passes as arguments, which can be called and no more.
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
    """The other process closed the connection; as the next, nothing that tests may catch."""


class ProgramExit(BaseException):
    """The program raised what is no Exception, such as SystemExit, or broke the format."""


class RemoteError(Exception):
    """An exception of the program's own tag."""


class Remote:
    """An object of the other process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_Remote__at", (peer, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it there."""
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


# What the program's process does to an object of its own.
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
        read, write: handles of files.
        side: "tests", which lets functions be called and exports nothing else; or "program".
    """

    def __init__(self, read: int, write: int, side: str) -> None:
        self.read, self.write, self.side = read, write, side
        self.own: list[Any] = []  # what was exported, by number; kept, so that ids stay
        self.numbers: dict[int, int] = {}  # id -> number
        self.remotes: dict[int, Any] = {}
        self.names: dict[str, Any] = {"__name__": "__main__"}  # the program's

    def ask(self, action: str, *arguments: Any) -> Any:
        """Has the other process do something.

        Raises:
            Ended: it closed the connection.
            ProgramExit: it did not keep to the format, or raised such as SystemExit.
            FormatError: an argument is no data, and too large or nothing to be passed.
            Exception: what it raised.
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
            self._answer(message)  # a function of the tests is called meanwhile

    def serve(self) -> None:
        """Does what the other process asks for until it closes the connection."""
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
                raise FormatError("of the tests, functions can be called only")
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

    # Numbers count up from 0 at the end where the object is: 2 n in the message is the sender's,
    # 2 n + 1 the receiver's.
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
    """A module's name, as a test's own import stands for it; or the value."""
    return ("module", value.__name__) if isinstance(value, ModuleType) else ("value", value)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_ERROR_CHARACTERS]
    except Exception:
        return ""


def _exception(message: Any) -> BaseException:
    """What the other process raised: of Python's own kinds, or a RemoteError of its name."""
    name, text, ordinary = message if type(message) is list and len(message) == 3 else [0, 0, 0]
    if not (type(name) is str and type(text) is str and name.isidentifier()):
        return ProgramExit("FormatError: no exception")
    if not ordinary:
        return ProgramExit(f"{name}: {text}")
    cls: Any = getattr(builtins, name, None)
    own = type(name, (RemoteError,), {})(text)
    try:
        return cls(text) if isinstance(cls, type) and issubclass(cls, Exception) else own
    except TypeError:  # those of more arguments, as of Unicode
        return own


def describe(error: BaseException) -> str:
    """The exception's tag and text."""
    if isinstance(error, ProgramExit):
        return str(error)[:_ERROR_CHARACTERS]
    return f"{type(error).__name__}: {_text(error)}"[:_ERROR_CHARACTERS]
