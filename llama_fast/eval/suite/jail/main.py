"""Confines a process, forks it, and runs the program in the child and its tests in the parent.

The process started by :mod:`sandbox` sets up the layers and forks. The child runs the program; its
memory holds nothing else, and its only connection is the one to the parent. The parent then reads
program and tests, runs the tests, and decides the outcome. Before that it reports the guards;
nothing runs unless files, network and processes each have one.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import json
import os
import signal
import symtable
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from . import layers
from .calls import filter_system_calls
from .frames import read_frame, write_frame
from .peer import Ended, Peer, describe

_Guards = dict[str, list[str]]


def main() -> None:
    """Read the job from standard input and run it."""
    order = _message(0)
    channel, without = order["channel"], order["without"]
    _die_with_parent(order["parent"])
    active: _Guards = {"files": [], "network": [], "processes": [], "failed": []}
    writable: list[str] = []
    if "namespaces" not in without and _attempt(
        active, "namespaces", ["network"], layers.new_namespaces
    ):
        arguments = (os.getcwd(), order["readable"], order["limits"]["disk_mb"])
        if _attempt(active, "own root", ["files"], layers.new_root, *arguments):
            writable = [layers.WORK, "/tmp"]
        child = os.fork()  # init of the new process namespace: all processes in it end with it
        if child:
            os.close(channel)
            os.waitpid(child, 0)
            os._exit(0)
        parent = 0
    else:
        parent = order["parent"]
    if "Landlock" not in without:
        _attempt(active, "Landlock", ["files"], layers.landlock, order["readable"], writable)
    _attempt(active, "no capabilities", [], layers.drop_capabilities)
    # After the layers, because a change of rights resets this signal.
    _die_with_parent(parent)
    _split(channel, active, order)


def _split(channel: int, active: _Guards, order: dict[str, Any]) -> None:
    """Fork: this process runs the tests, the child runs the program."""
    requests, answers = os.pipe(), os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        kept = [2, *sorted((requests[0], answers[1])), 1 << 20]
        for before, after in pairwise(kept):
            os.closerange(before + 1, after)
        _die_with_parent(parent)
        _shut(active, order)
        sys.path += order["packages"]
        write_frame(answers[1], json.dumps(active).encode())
        del order, active
        Peer(requests[0], answers[1], "program").serve()
        os._exit(0)
    os.close(requests[0])
    os.close(answers[1])
    child_active = _message(answers[0])
    _shut(active, order)
    sys.path += order["packages"]
    both = {
        category: [name for name in active[category] if name in child_active[category]]
        for category in ("files", "network", "processes")
    }
    failed = list(dict.fromkeys(active["failed"] + child_active["failed"]))
    open_to = [category for category, names in both.items() if not names]
    report = {"held": {**both, "failed": failed}, "open": open_to}
    os.write(channel, (json.dumps(report) + "\n").encode())
    if open_to:
        os._exit(1)
    task = _message(0)
    peer = Peer(answers[0], requests[1], "tests")
    os.write(channel, _outcome(peer, child, task["program"], task["tests"]).encode())
    os._exit(0)


def _outcome(peer: Peer, child: int, program: str, tests: str) -> str:
    """ "passed", or "failed" with the reason."""
    try:
        peer.ask("load", program)
        if tests:
            _run_tests(peer, tests)
    except Ended:
        return f"failed ended early{_exit_code(child)}"
    except BaseException as error:
        return f"failed {describe(error)}"
    return "passed"


def _run_tests(peer: Peer, tests: str) -> None:
    """Run the tests; names that they use but do not define come from the program."""
    code = compile(tests, "<tests>", "exec")
    from_program, modules = _names(tests)
    names: dict[str, Any] = {"__name__": "__main__"}
    for name, category, value in peer.ask("names", sorted(from_program | modules)):
        if name in modules:
            # Imported here: the program could replace a module by an object that passes any test.
            names[name] = importlib.import_module(name)
        elif name in from_program and category == "value":
            names[name] = value
    exec(code, names)


def _names(tests: str) -> tuple[set[str], set[str]]:
    """Names that the tests take from the program, and modules that it should have imported.

    Built-in functions are not taken from the program, unless the tests use no other name: then the
    task is to define one of them (MBPP asks for a function ``sum``).
    """
    top = symtable.symtable(tests, "<tests>", "exec")
    used, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        symbols = table.get_symbols()
        used |= {s.get_name() for s in symbols if s.is_referenced() and s.is_global()}
        if table is top:
            used |= {s.get_name() for s in symbols if s.is_referenced()}
    used -= {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used.discard("__name__")
    from_program = {name for name in used if not hasattr(builtins, name)} or used
    modules = from_program & sys.stdlib_module_names
    if modules:  # modules of which only attributes are used
        import ast  # rarely needed and slow to import

        nodes = list(ast.walk(ast.parse(tests)))
        bases = {id(n.value) for n in nodes if isinstance(n, ast.Attribute)}
        modules -= {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in bases}
    return from_program - modules, modules


def _shut(active: _Guards, order: dict[str, Any]) -> None:
    """Apply the last guards, which each of the two processes sets for itself."""
    layers.limit(order["limits"])
    _attempt(active, "system-call filter", ["network", "processes"], filter_system_calls)


def _attempt(
    active: _Guards, name: str, kinds: list[str], action: Callable[..., None], *args: object
) -> bool:
    """Run the action; if it succeeds, record ``name`` as a guard of ``kinds``."""
    try:
        action(*args)
    except (OSError, KeyError, AttributeError) as error:
        active["failed"].append(f"{name}: {error}")
        return False
    for category in kinds:
        active[category].append(name)
    return True


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(layers.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _exit_code(child: int) -> str:
    """The exit code of the program's process, if it ends within 0.1 s."""
    for _ in range(20):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return f", exit code {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.005)
    return ""


def _message(handle: int) -> Any:
    """The next message; exits if the other end of the pipe is closed.

    Reads no byte beyond it: the forked process of the program would have that in its memory.
    """
    data = read_frame(handle)
    return os._exit(1) if data is None else json.loads(data)
