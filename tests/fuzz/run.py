"""Feed readers with changed files, until time is up or for so many of them.

    python -m tests.fuzz.run gguf --seconds 600       # with atheris, where it is installed
    python -m tests.fuzz.run --group data --inputs 100

What a reader may raise is said in `tests/fuzz/readers.py`. An input that leads to anything else is
written to build/fuzz and named; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOUND = REPOSITORY / "build" / "fuzz"
MEMORY = 3 << 30  # more than the process has at its beginning
SECONDS = 30  # of CPU time for one input, ten times what the slowest takes

os.environ.setdefault("LLAMA_FAST_LIMITS", "template-seconds=1,tokenizer-seconds=20,json=64M")


class TooSlowError(BaseException):
    """An input takes longer than SECONDS; no reader catches it."""


def main() -> int:
    """Run one target, or those of a group one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--group", help="all targets of it")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--inputs", type=int, help="for each target, instead of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    args = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    guided = args.inputs is None and not args.plain and importlib.util.find_spec("atheris")
    if guided:
        import atheris

        with atheris.instrument_imports(include=["llama_fast"]):
            from tests.fuzz.readers import TARGETS
    else:
        from tests.fuzz.readers import TARGETS
    names = [name for name, target in TARGETS.items() if target.group == args.group]
    names = [args.target] if args.target else names or list(TARGETS)
    if guided and len(names) == 1:
        return _guided(names[0], args.seconds)
    _limit()
    return max(_plain(name, args) for name in names)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def too_slow(*_: object) -> None:
        raise TooSlowError(f"more than {SECONDS} s of CPU time")

    signal.signal(signal.SIGVTALRM, too_slow)


def _plain(name: str, args: argparse.Namespace) -> int:
    from tests.fuzz.readers import TARGETS

    rng = random.Random(zlib.crc32(f"{name} {args.seed}".encode()))
    begin, count, wrong = time.monotonic(), 0, 0
    for content in _changed(TARGETS[name].seeds(), rng):
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        wrong += not read(name, content)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        count += 1
        if count == args.inputs if args.inputs else time.monotonic() > begin + args.seconds:
            break
        if wrong >= 5:
            break
    print(f"{name}: {count} inputs, {wrong} wrong, {time.monotonic() - begin:.0f} s", flush=True)
    return int(wrong > 0)


def _changed(seeds: list[bytes], rng: random.Random) -> Iterator[bytes]:
    from tests.fuzz.mutate import change

    yield from seeds
    while True:
        yield change(rng.choice(seeds), rng)


def read(name: str, content: bytes) -> bool:
    """Whether a reader does with a content what it may."""
    from llama_fast.cli.exit_codes import USER_ERRORS
    from tests.fuzz.readers import TARGETS

    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        TARGETS[name].read(folder, content)
    except USER_ERRORS as error:
        if not isinstance(error, MemoryError):  # nothing here is large
            return True
        _report(name, content)
        return False
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        _report(name, content)
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _report(name: str, content: bytes) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    traceback.print_exc()
    print(f"{name}: found {path}", flush=True)


def _guided(name: str, seconds: int) -> int:
    import atheris

    from tests.fuzz.readers import TARGETS

    corpus = FOUND / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def once(content: bytes) -> None:
        if not read(name, content):
            raise RuntimeError(f"{name}: a reader raised what it must not")

    def changed(content: bytes, most: int, seed: int) -> bytes:
        from tests.fuzz.mutate import change

        rng = random.Random(seed)
        # In turn our changes of values and libFuzzer's of bytes, which follow what is reached.
        found = change(content, rng) if rng.random() < 0.5 else atheris.Mutate(content, most)
        return found[:most]

    options = [f"-max_total_time={seconds}", "-rss_limit_mb=6000", f"-timeout={SECONDS}",
               "-max_len=65536", f"-artifact_prefix={FOUND}/{name}-"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], once, custom_mutator=changed)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
