"""Programs that try to get out of the sandbox.

Each attempt is made with all layers, and with each of the two that guard the files left out. What
an attempt aims at is outside and real: a file, a listening socket. `test_sandbox_others.py` has
those on other processes.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llama_fast.eval.suite import sandbox
from llama_fast.eval.suite.sandbox import Limits, Outcome, SandboxError, _run, run
from tests.eval.suite.attempts import QUICK, SHORT, unguarded

pytestmark = pytest.mark.usefixtures("programs_can_run")


def escapes(outcome: Outcome) -> str:
    """What the program says it managed to do; the attempts raise SystemExit(what) then."""
    return outcome.error if outcome.error.startswith("SystemExit") else ""


def test_a_good_program_passes_and_a_bad_one_does_not(attempt) -> None:
    assert attempt("import math, re, collections, heapq\nassert math.gcd(12, 18) == 6").passed
    failed = attempt("assert 1 == 2, 'not equal'")
    assert (failed.status, failed.error) == ("failed", "AssertionError: not equal")
    assert attempt("def f(:").error.startswith("SyntaxError")


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "import os; os._exit(0)", "quit = 1; 1/0"])
def test_an_early_end_is_no_pass(attempt, code: str) -> None:
    assert attempt(f"{code}\nassert False").status == "failed"


def test_a_file_outside_cannot_be_read(attempt, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not tell")
    program = f"raise SystemExit(open({str(secret)!r}).read())"
    assert "do not tell" in unguarded(program)
    assert "do not tell" not in attempt(program).error
    other = f"import os; raise SystemExit(os.listdir({str(tmp_path)!r}))"
    assert "secret" in unguarded(other)
    assert "secret" not in escapes(attempt(other))
    for path in ("/etc/passwd", "/proc/self/environ", f"/proc/{os.getpid()}/cmdline"):
        assert escapes(attempt(f"raise SystemExit(open({path!r}, 'rb').read())")) == ""


def test_nothing_outside_can_be_written(attempt, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    kept.chmod(0o640)
    before = kept.stat()
    attempts = [
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"open({str(kept)!r}, 'a').write('x')",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.unlink({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        f"import os; os.chmod({str(kept)!r}, 0o777)",
        f"import os; os.utime({str(kept)!r}, (1, 1))",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        f"import os; os.symlink('/', {str(tmp_path / 'link')!r})",
        f"open({str(Path(sys.prefix) / 'pyvenv.cfg')!r}, 'a')",
        f"open({os.__file__!r}, 'a')",
        "open('/usr/written', 'w')",
        "open('/written', 'w')",
        "import os; os.mkdir('/usr/folder')",
        "open('/lib/written', 'w')",
    ]
    for program in attempts:
        assert attempt(program).status == "failed", program
    after = kept.stat()
    assert kept.read_text() == "as it was"
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    assert os.listdir(tmp_path) == ["kept"]


def test_own_folder_is_bounded_and_gone_afterwards(tmp_path: Path) -> None:
    assert run("open('note', 'w').write('x'); assert open('note').read() == 'x'").passed
    big = "b = bytes(1 << 20)\nwith open('big', 'wb') as f:\n    for _ in range(9): f.write(b)"
    assert "File too large" in run(big).error
    many = "for i in range(40):\n    open(str(i), 'wb').write(bytes(1 << 20))"
    assert "No space left" in run(many).error
    assert not list(Path("/tmp").glob("llama-fast-run-*/*"))


def test_no_connection_to_this_machine(attempt) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        program = (
            "import socket\n"
            f"socket.create_connection(('127.0.0.1', {port}), timeout=0.5).send(b'out')\n"
            "raise SystemExit('connected')"
        )
        assert escapes(attempt(program)) == ""
        with pytest.raises(TimeoutError):
            server.accept()
        assert "connected" in unguarded(program)
        server.accept()


def test_no_new_process_and_no_program(attempt) -> None:
    assert "PermissionError" in attempt("import os\nwhile True: os.fork()").error
    assert "PermissionError" in attempt("import subprocess; subprocess.run(['/bin/true'])").error
    assert "PermissionError" in attempt("import os; os.execv('/bin/true', ['true'])").error
    assert attempt("import os; assert os.system('true') == 0").status == "failed"
    assert attempt("import os; os.posix_spawn('/bin/true', ['true'], {})").status == "failed"


def test_no_thread(attempt) -> None:
    """Thousands of them would burden the machine, and a filter cannot count."""
    threads = "import threading\nthreading.Thread(target=print).start()"
    assert unguarded(threads) == ""
    assert attempt(threads).error.startswith("RuntimeError: can't start new thread")
    clone, clone3 = (56, 435) if os.uname().machine == "x86_64" else (220, 435)
    flags = 0x10000 | 0x800 | 0x100 | 0x200 | 0x400  # a thread of the same memory and files
    for number, arguments in (
        (clone, f"{flags}, None, None, None, None"),
        (clone3, "b'\\0' * 88, 88"),
    ):
        program = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"assert libc.syscall(ctypes.c_long({number}), {arguments}) == -1\n"
            "assert ctypes.get_errno() == 1, ctypes.get_errno()"
        )
        assert attempt(program).passed, number


def test_memory_is_bounded(attempt) -> None:
    assert "MemoryError" in attempt("x = bytearray(4 << 30)").error
    hog = "x = []\nwhile True: x.append(bytearray(50 << 20))"
    assert attempt(hog, Limits(seconds=20.0, memory_mb=300)).error.startswith("MemoryError")


def test_processor_time_is_limited_and_waiting_is_not(attempt) -> None:
    """A busy machine does not decide whether a program is right."""
    limits = Limits(seconds=60, cpu_seconds=1)
    for program, tests in (("while True: pass", ""), ("x = 1", "while True: pass")):
        outcome = attempt(program, limits, tests)
        assert (outcome.status, outcome.error) == (
            "timed out",
            "longer than 1 s of processor time",
        )
    assert attempt("import time\ntime.sleep(1.5)", limits).passed


def test_time_is_bounded(attempt) -> None:
    start = time.monotonic()
    loop = attempt("while True: pass", SHORT)
    assert loop.status == "timed out"
    stubborn = (
        "import signal\n"
        "for s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True:\n"
        "    try: signal.pause()\n"
        "    except BaseException: pass"
    )
    assert attempt(stubborn, SHORT).status == "timed out"
    assert time.monotonic() - start < 10


def test_output_is_thrown_away(attempt) -> None:
    outcome = attempt("s = 'x' * (1 << 20)\nwhile True: print(s)", SHORT)
    assert (outcome.status, len(outcome.error) < 1000) == ("timed out", True)
    assert len(attempt("raise ValueError('x' * (1 << 24))").error) < 1000
    assert attempt("import sys\nprint(1)\nprint(2, file=sys.stderr)\nassert input").passed


def test_a_program_that_hangs_up_is_not_waited_for(attempt) -> None:
    start = time.monotonic()
    outcome = attempt("import os, time\nos.closerange(0, 99)\ntime.sleep(60)", SHORT)
    assert (outcome.status, outcome.error) == ("failed", "ended early")
    assert time.monotonic() - start < 5


def test_what_lies_beside_python_cannot_be_read(attempt) -> None:
    for path in (sys.executable, Path(sys.prefix) / "pyvenv.cfg", "/usr/bin/env"):
        program = f"raise SystemExit(str(len(open({str(path)!r}, 'rb').read())))"
        assert unguarded(program).strip().isdigit()
        assert escapes(attempt(program)) == "", path


def test_no_way_back_up(attempt) -> None:
    calls = {
        "unshare": "0x10000000",
        "mount": "b'/', b'/tmp', None, 4096, None",
        "umount2": "b'/usr', 2",
        "ptrace": f"16, {os.getpid()}, 0, 0",
        "chroot": "b'.'",
        "setns": "3, 0",
        "prctl": "1, 0, 0, 0, 0",
    }
    for name, arguments in calls.items():
        program = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"assert libc.{name}({arguments}) == -1\nassert ctypes.get_errno() == 1"
        )
        assert attempt(program).passed, name


def test_environment_is_empty(attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FAST_SECRET", "do not tell")
    outcome = attempt("import os; raise SystemExit(sorted(os.environ))")
    assert "SECRET" not in outcome.error and "HOME" not in outcome.error


def test_installed_packages_can_be_imported(attempt) -> None:
    assert attempt("import numpy as np\nassert np.arange(4).sum() == 6", Limits(seconds=20)).passed


def test_it_dies_with_its_parent() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(sandbox.__file__).parents[3])!r})\n"
        "from llama_fast.eval.suite.sandbox import run, Limits\n"
        "print('go', flush=True)\n"
        "run('while True: pass', Limits(seconds=50, memory_mb=777))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"go\n"
    deadline = time.monotonic() + 20
    while not (children := jails(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    time.sleep(0.3)
    children = jails(parent.pid)
    parent.kill()
    parent.wait()
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


def jails(parent: int) -> list[int]:
    """Process ids of the sandbox's processes below ``parent``, outer and inner."""
    found = [parent]
    for pid in sorted(int(p) for p in os.listdir("/proc") if p.isdigit()):
        try:
            above = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if above in found:
            found.append(pid)
    return found[1:]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_several_threads_may_run_programs_at_once() -> None:
    outcomes: list[Outcome] = []
    workers = [
        threading.Thread(target=lambda: outcomes.append(run("x = 1", Limits(seconds=10))))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [outcome.status for outcome in outcomes] == ["passed"] * 6


def test_an_unguarded_program_does_not_run() -> None:
    with pytest.raises(SandboxError, match="nothing guards files"):
        _run("pass", QUICK, ("namespaces", "Landlock"))


def test_a_sample_costs_little() -> None:
    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    run("pass")
    start = processor_seconds()
    for _ in range(5):
        run("pass")
    assert 0 < (processor_seconds() - start) / 5 < 0.5
